"""Test ensemble_assets.simulated."""
