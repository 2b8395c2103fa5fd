"""Test ensemble_assets.models."""
