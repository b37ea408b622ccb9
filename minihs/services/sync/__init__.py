"""`/sync`: what a client has not seen yet."""
