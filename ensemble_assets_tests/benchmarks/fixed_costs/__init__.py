"""Measure where the seconds of a small run go."""
