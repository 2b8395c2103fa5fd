"""Compute devices: one interface for GPUs and the host, discovery, memory ceilings and leases."""
