"""Compute the exact SPLADE head on a CPU without all of its products."""
