"""Test ensemble_assets.pipeline."""
