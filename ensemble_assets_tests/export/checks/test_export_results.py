"""The exporter's results are reported as long as the bundle is the one that was judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.query_leaks.gate import text_place
from ensemble_assets.export.suite import GATES, ExportResults, Limits, require_gates, with_places
from ensemble_assets_tests.export.checks.bundles import HEADING, QUERY, Made, everything

BUNDLE_GATES = GATES[:6]


def stored(made: Made) -> ExportResults:
    """The exporter's results, after a way through JSON."""
    assert made.inputs is not None
    results = require_gates(made.folder, made.inputs, Limits(), (QUERY, HEADING))
    return ExportResults.from_json(json.loads(json.dumps(results.as_json())))


def test_the_exporters_results_are_those_of_the_gates(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    reported = {result.name: result for result in stored(made).reported(made.folder)}
    assert tuple(reported) == BUNDLE_GATES
    anew = made.judge()
    assert reported == {name: anew[name] for name in BUNDLE_GATES}
    assert reported["rerank_fallbacks"].severity == "WARN"
    assert not reported["rerank_fallbacks"].passed, "a warning is reported too"


def _byte_changed(made: Made) -> str:
    path = made.path("qdrant.jsonl")
    path.write_bytes(path.read_bytes().replace(b"alpha", b"alpho", 1))
    return path.name


def _file_removed(made: Made) -> str:
    made.path("texts.json").unlink()
    return made.path("texts.json").name


def _manifest_changed(made: Made) -> str:
    made.document("processing_summary.json", lambda value: value.update(note=1))
    return "processing_summary.json"


@pytest.mark.parametrize("change", [_byte_changed, _file_removed, _manifest_changed])
def test_a_changed_bundle_fails_every_gate_and_asks_to_export_again(
    change: Callable[[Made], str], tmp_path: Path
) -> None:
    made = everything(tmp_path / "on")
    results = stored(made)
    name = change(made)
    for result in results.reported(made.folder):
        assert result.failed
        assert result.problems[0].startswith(f"{name}: is missing or changed since the export")
        assert "Export the bundle again" in result.problems[0]


def test_a_file_of_somebody_else_changes_nothing(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    results = stored(made)
    (made.folder / "notes.txt").write_text("hello")
    assert not any(result.failed for result in results.reported(made.folder))


@pytest.mark.parametrize("other", [None, [], "x"])
def test_an_export_without_results_says_what_to_do(other: object) -> None:
    with pytest.raises(ArtefactError, match="Export the bundle again"):
        ExportResults.from_json(other)


def test_results_of_an_earlier_version_come_back_under_the_names_of_today(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    content = json.loads(json.dumps(stored(made).as_json()).replace("bundle_format", "legacy_keys"))
    assert [result.name for result in ExportResults.from_json(content).results] == list(BUNDLE_GATES)


def test_a_result_survives_json() -> None:
    result = GateResult("a", False, "WARN", ("thin",), {"problems": 1, "share": 0.5}, ("a note",))
    assert GateResult.from_json(json.loads(json.dumps(result.as_json()))) == result


def test_a_query_beside_the_bundle_is_found_all_the_same(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    [result] = [result for result in stored(made).results if result.name == "no_raw_queries"]
    place = text_place("a log", [f"asked: {QUERY.text}"])
    both = with_places(result, (QUERY, HEADING), [place], tuple)
    assert both.failed
    assert "a log: holds the text of query q1" in both.problems[0]
    assert both.numbers == made.judge(places=lambda: [place])["no_raw_queries"].numbers
    assert with_places(result, (QUERY, HEADING), [], tuple).passed
