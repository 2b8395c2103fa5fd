"""Tests of ensemble_assets.compute."""
