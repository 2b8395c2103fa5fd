"""Test ensemble_assets.artefacts."""
