"""Tests of the readers of chunk files."""
