"""The server-server API: thin handlers; `request.origin` is the server that signed the request."""
