"""minihs, a Matrix homeserver meant to be small, fast, and read as a reference implementation."""

__version__ = "0.1.0"
