"""Tests of ensemble_assets.training."""
