"""Test ensemble_assets.compute.ray."""
