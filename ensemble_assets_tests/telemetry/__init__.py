"""Tests of ensemble_assets.telemetry."""
