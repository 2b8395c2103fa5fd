"""Tests of ensemble_assets.retrieval."""
