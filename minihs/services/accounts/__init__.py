"""Accounts of this server's users: sessions, devices, profiles, account data."""
