"""Test ensemble_assets.compute.backends."""
