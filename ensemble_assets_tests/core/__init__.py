"""Tests of ensemble_assets.core."""
