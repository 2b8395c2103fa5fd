"""Test ensemble_assets.compute.batching."""
