"""Test ensemble_assets.compute.running."""
