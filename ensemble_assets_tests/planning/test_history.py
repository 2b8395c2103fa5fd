"""Observed costs on disk: the newest two of clearly different work stay; a damaged file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets.planning.history import Observation, recall, remember, stage_key
from ensemble_assets.settings import Settings, resolve


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return resolve({"paths.cache_dir": str(tmp_path / "cache")}, environment={}).settings


def run(work: float) -> Observation:
    return Observation(work, work / 2, "run")


def test_observations_come_back_and_the_newest_two_of_different_work_stay(settings: Settings) -> None:
    assert recall(settings, "dense") == []
    calibration = [Observation(1.0, 2.0, "calibration"), Observation(8.0, 3.0, "calibration")]
    assert remember(settings, {"dense": calibration, "sparse": [run(3.0)]})
    assert recall(settings, "dense") == calibration
    assert recall(settings, "sparse") == [run(3.0)]
    remember(settings, {"dense": [run(100.0)]})
    assert recall(settings, "dense") == [calibration[1], run(100.0)]
    remember(settings, {"dense": [run(110.0)]})
    assert recall(settings, "dense") == [calibration[1], run(110.0)], "equal work tells nothing about loading"
    remember(settings, {"dense": [run(500.0)]})
    assert recall(settings, "dense") == [run(110.0), run(500.0)]


def test_a_damaged_file_counts_as_empty_and_fills_again(settings: Settings, tmp_path: Path) -> None:
    key, path = stage_key(settings, "dense"), tmp_path / "cache" / "stage_costs_by_token.json"
    path.parent.mkdir()
    damaged = {"version": 1, "entries": {key: [{"work": "x"}], stage_key(settings, "sparse"): 3}}
    for content in ("", "[1]", '{"version": 0}', json.dumps(damaged)):
        path.write_text(content)
        assert recall(settings, "dense") == recall(settings, "sparse") == []
        assert remember(settings, {"dense": [run(1.0)]})
        assert recall(settings, "dense") == [run(1.0)]
