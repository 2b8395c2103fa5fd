"""Test ensemble_assets.compute.tokens."""
