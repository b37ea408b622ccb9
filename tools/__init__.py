"""What developers run beside the server; each says how in its docstring."""
