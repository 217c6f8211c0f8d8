"""The backends: thin adapters between the op and whoever computes a scan."""
