"""A small collection and a pipeline with fast doubles."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    write_collection(tmp_path / "corpora" / "notes")
    return Pipeline(tmp_path)
