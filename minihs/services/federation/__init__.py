"""What this server does with other servers, and for them."""
