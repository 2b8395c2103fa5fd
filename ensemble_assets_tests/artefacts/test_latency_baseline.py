"""Stored baselines: found again for the same machine, content and models, for nothing else; damage is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_assets.artefacts.latency_baseline import (
    ModelSeconds,
    SlaBaseline,
    baselines,
    content_fingerprint,
    find_baseline,
    store_baseline,
)
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.machine import Host, library_versions, this_host

MADE = SlaBaseline(
    collection="notes",
    content=content_fingerprint(["a", "b"]),
    texts=2,
    host=Host("Some CPU", 2),
    models=(ModelSeconds("one", "f1", 0.5, (3.0, 1.0, 2.0)), ModelSeconds("two", "f2", 0.25, (4.0,))),
    libraries={"torch": "2.0"},
    measured_at="2026-01-01T00:00:00+00:00",
)


def test_the_seconds_are_medians_of_encoding_plus_loading_over_all_models() -> None:
    assert MADE.seconds == (0.5 + 2.0) + (0.25 + 4.0)


def test_what_is_stored_is_found_again_with_all_of_its_provenance(tmp_path: Path) -> None:
    path = store_baseline(tmp_path, MADE)
    assert find_baseline(tmp_path, MADE.key) == MADE
    assert json.loads(path.read_text())["seconds"] == MADE.seconds
    assert baselines(tmp_path) == [MADE]


@pytest.mark.parametrize(
    "other",
    [
        replace(MADE, host=Host("Some CPU", 4)),
        replace(MADE, host=Host("Some CPU", 2, ("Tesla T4",))),
        replace(MADE, content=content_fingerprint(["b", "a"])),
        replace(MADE, models=MADE.models[:1]),
        replace(MADE, models=MADE.models[::-1]),
    ],
)
def test_another_machine_content_or_choice_of_models_has_no_baseline(tmp_path: Path, other: SlaBaseline) -> None:
    store_baseline(tmp_path, MADE)
    assert find_baseline(tmp_path, other.key) is None


def test_library_versions_are_provenance_and_not_identity(tmp_path: Path) -> None:
    store_baseline(tmp_path, MADE)
    assert find_baseline(tmp_path, replace(MADE, libraries={"torch": "3.0"}).key) == MADE


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 0}', '{"version": 1, "seconds": 1, "host": {}}'])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    store_baseline(tmp_path, MADE).write_text(content)
    with pytest.raises(ArtefactError, match="ensemble-assets baseline sla"):
        find_baseline(tmp_path, MADE.key)
    assert baselines(tmp_path) == []


def test_this_host_has_a_processor_cores_and_the_libraries_that_decide_times() -> None:
    host = this_host()
    assert host.cpu
    assert host.cores >= 1
    assert {"numpy", "torch"} <= set(library_versions())
    assert len(host.fingerprint) == 16
