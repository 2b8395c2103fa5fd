"""Tests, mirroring the package; benchmarks in ``benchmarks/``."""
