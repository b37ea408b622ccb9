"""minihs and Synapse, two real processes, federate over TLS on loopback: `make interop`."""
