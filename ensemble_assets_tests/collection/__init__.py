"""Test ensemble_assets.collection."""
