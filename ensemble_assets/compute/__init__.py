"""Devices, leases, batch planning and the three encoders. The only part (with ``training``) that imports torch."""
