"""The client-server API, one module for each part of it."""
