"""Test ensemble_assets.export.read."""
