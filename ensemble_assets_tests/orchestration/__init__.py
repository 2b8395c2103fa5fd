"""Tests of ensemble_assets.orchestration."""
