"""Exact top-k, fusion and evaluation: pure functions on arrays and frames."""
