"""The inspector's pages: server-made HTML without scripts. Every string in a room is hostile."""
