"""Test ensemble_assets.tools."""
