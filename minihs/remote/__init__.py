"""Every request that this server makes to the outside."""
