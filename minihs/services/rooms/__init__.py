"""Rooms: every way to write an event, one way to commit it, and how history is read."""
