"""Tests of ensemble_assets.cli."""
