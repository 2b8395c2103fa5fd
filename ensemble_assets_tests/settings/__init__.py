"""Tests of ensemble_assets.settings."""
