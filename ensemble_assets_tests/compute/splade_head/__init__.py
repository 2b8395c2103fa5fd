"""Test ensemble_assets.compute.splade_head."""
