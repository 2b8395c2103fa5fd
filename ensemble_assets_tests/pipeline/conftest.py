"""Lend the small pipeline of the orchestration tests to these tests."""

from __future__ import annotations

from ensemble_assets_tests.orchestration.conftest import pipeline

__all__ = ["pipeline"]
