"""Test ensemble_assets.planning."""
