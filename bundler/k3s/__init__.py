"""What we know about K3s: no I/O beyond the data shipped in ``data/``."""
