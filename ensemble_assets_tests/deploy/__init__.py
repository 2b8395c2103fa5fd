"""Tests of the files in docs/deploy."""
