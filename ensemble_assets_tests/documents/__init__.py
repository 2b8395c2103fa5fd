"""Documents that become chunks."""
