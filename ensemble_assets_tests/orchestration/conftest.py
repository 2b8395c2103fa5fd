"""A small collection, a pipeline with fast doubles, and an instance on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    write_collection(tmp_path / "corpora" / "notes")
    return Pipeline(tmp_path)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, as schedules need one; it is in ``home`` below ``tmp_path``."""
    overrides = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), overrides=overrides) as made:
        yield made


@pytest.fixture
def configured(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The places of the pipeline in the environment, where sensors and schedules look."""
    for variable, place in {
        "CHUNKED_DIR": "corpora", "OUTPUT_DIR": "output", "PATHS_CACHE_DIR": "cache", "KEY_FILE": "key"
    }.items():  # fmt: skip
        monkeypatch.setenv(f"EMBEDDER_{variable}", str(pipeline.root / place))
    monkeypatch.setenv("EMBEDDER_OPERATIONS_SETTLE_SECONDS", "0")
    return pipeline
