"""Test ensemble_assets.common."""
