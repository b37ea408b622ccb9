"""What a homeserver does. A service is a module of functions whose first argument is `Services`."""
