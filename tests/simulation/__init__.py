"""The simulator: whole servers, a bad network, and a seed that says what goes wrong."""
