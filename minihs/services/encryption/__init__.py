"""What end-to-end encryption asks of a server."""
