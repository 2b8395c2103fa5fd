"""Test ensemble_assets.export.write."""
