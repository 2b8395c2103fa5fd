"""Test ensemble_assets.pipeline.bundle."""
