"""Tests of ensemble_assets.export."""
