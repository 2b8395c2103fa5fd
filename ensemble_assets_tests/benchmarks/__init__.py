"""Benchmarks: each prints JSON with ratios against what a user would use instead. Not part of the test suite."""
