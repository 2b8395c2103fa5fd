"""The exporter's verdicts are taken over only where nothing can have changed, and never instead of a look elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.verdicts import circumstances, holding, kept
from ensemble_assets.export.query_leaks.searched_places import Place, text_place
from ensemble_assets.export.suite import BEFORE_THE_SWAP, Limits, require_gates
from ensemble_assets_tests.export.checks.bundles import HEADING, QUERY, Made, everything

VERSIONS = ["v1", "v2"]
LIMITS = Limits()


def on(made: Made, run: str = "run", versions: list[str] = VERSIONS, limits: Limits = LIMITS) -> str:
    return circumstances(made.folder, run, versions, limits)


def stored(made: Made) -> object:
    """The exporter's verdicts, after a way through JSON."""
    assert made.inputs is not None
    results = require_gates(made.folder, made.inputs, LIMITS, (QUERY, HEADING))
    return json.loads(json.dumps(kept(on(made), results)))


def test_the_exporters_verdicts_hold_while_nothing_changes(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    known = holding(stored(made), on(made))
    assert set(known) == set(BEFORE_THE_SWAP)
    anew, taken = made.judge(tmp_path / "s"), made.judge(tmp_path / "s", known=known)
    for name, result in taken.items():
        note = result.notes[-1:] if name in known else ()
        assert replace(result, notes=result.notes[:-1] if note else result.notes) == anew[name], name
        assert not note or "looked at by the exporter in this run" in note[0]


def _byte_changed(made: Made) -> str:
    path = made.path("qdrant.jsonl")
    path.write_bytes(path.read_bytes().replace(b"alpha", b"alpho", 1))
    return on(made)


def _file_added(made: Made) -> str:
    (made.folder / "notes.txt").write_text("hello")
    return on(made)


CHANGES: dict[str, Callable[[Made], str]] = {
    "one byte": _byte_changed,
    "another file": _file_added,
    "another run": lambda made: on(made, run="other"),
    "another artefact": lambda made: on(made, versions=["v1", "v3"]),
    "another limit": lambda made: on(made, limits=Limits(sparse_coverage_warn=0.9)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_they_do_not_hold_when_anything_changes(change: str, tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    before = stored(made)
    assert holding(before, CHANGES[change](made)) == {}


@pytest.mark.parametrize("other", [None, {}, [], "x", {"on": "y", "results": []}])
def test_what_is_no_stored_verdict_holds_nothing(other: object) -> None:
    assert holding(other, "x") == {}


def test_only_passed_verdicts_are_taken_over() -> None:
    results = [GateResult("a", True, "ERROR"), GateResult("b", False, "WARN", ("thin",), {"problems": 1})]
    assert set(holding(kept("x", results), "x")) == {"a"}


def test_a_query_beside_the_bundle_is_found_all_the_same(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    known = holding(stored(made), on(made))

    def places() -> list[Place]:
        return [text_place("a log", [f"asked: {QUERY.text}"])]

    result = made.judge(tmp_path / "s", known=known, places=places)["no_raw_queries"]
    assert result.failed
    assert "a log: holds the text of query q1" in result.problems[0]
    assert result.numbers == made.judge(tmp_path / "s", places=places)["no_raw_queries"].numbers
