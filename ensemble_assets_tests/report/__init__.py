"""Test ensemble_assets.report."""
