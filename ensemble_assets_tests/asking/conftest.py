"""A small collection and a pipeline with fast doubles."""

from ensemble_assets_tests.orchestration.conftest import pipeline

__all__ = ["pipeline"]
