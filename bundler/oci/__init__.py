"""Pure values of the OCI specifications: no I/O, and nothing of ours imported but ``errors``."""
