"""``evaluate`` and ``baseline accept`` as a user calls them: what they print and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.cli.main import commands
from ensemble_assets.common.errors import SettingsError
from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the collection ``notes``, made with fast doubles."""
    folder = tmp_path_factory.mktemp("quality")
    write_collection(folder / "corpora" / "notes")
    outcome = Pipeline(folder).run()
    assert outcome.succeeded, outcome.error
    return folder


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is the folder of the run, and no instance of the machine is touched."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("EMBEDDER_KEY_FILE", str(root / "key"))


def call(*arguments: str) -> int:
    return int(commands.main(list(arguments), standalone_mode=False) or 0)


@pytest.mark.parametrize("target", [("output/notes",), ("notes", "--output-dir", "output"), ("notes",)])
def test_evaluate_by_bundle_and_by_name_prints_the_measures_and_the_verdicts(
    target: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", *target, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["collection"], printed["status"], printed["items"]) == ("notes", "completed", 3)
    assert {row["run"] for row in printed["summary"]} == {"dense", "sparse", "lexical", "fused", "reranked"}
    assert [check["check"] for check in printed["checks"] if not check["passed"]] == []
    assert {check["check"] for check in printed["checks"]} == {
        "quality_regression", "rerank_not_worse", "fusion_not_worse",
    }  # fmt: skip
    assert {check["check"] for check in printed["checks"] if not check["compared"]} == {"quality_regression"}
    assert call("evaluate", *target) == 0
    said = capsys.readouterr().out
    assert "skipped quality_regression: no baseline is accepted" in said
    assert "BM25 " in said
    assert "lexical" not in said


def test_accept_then_evaluate_is_equal_and_a_worse_run_fails_where_it_should(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("baseline", "accept", "output/notes") == 0
    said = capsys.readouterr().out
    assert "BM25 " in said
    assert "lexical" not in said
    path = root / "baselines" / "notes.quality.json"
    stored = json.loads(path.read_text())
    assert stored["provenance"]["stages"]["fusion"]["method"]
    assert stored["provenance"]["stages"]["dense"]["models"][0].startswith("all-minilm-l6-v2 ")
    assert "where is the" not in path.read_text(), "no query text"
    assert call("evaluate", "output/notes") == 0
    assert "equal to the accepted baseline" in capsys.readouterr().out

    stored["per_query"] = {query: [value + 0.2 for value in row] for query, row in stored["per_query"].items()}
    path.write_text(json.dumps(stored))
    strict = ("--set", "checks.quality_severity=error")
    assert call("evaluate", "output/notes", *strict) == 1
    assert "error   quality_regression" in capsys.readouterr().out
    assert call("evaluate", "output/notes") == 0
    assert "warn    quality_regression" in capsys.readouterr().out
    path.unlink()


def test_a_collection_that_was_not_run_is_said_to_be_so() -> None:
    with pytest.raises(SettingsError, match="run it first"):
        call("evaluate", "elsewhere")
    with pytest.raises(SettingsError, match="run it first"):
        call("baseline", "accept", "elsewhere")


def test_the_database_is_asked_for_the_collection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = dg.DagsterInstance.has_dynamic_partition

    def counted(instance: dg.DagsterInstance, partitions_def_name: str, partition_key: str) -> bool:
        asked.append(partition_key)
        return ask(instance, partitions_def_name, partition_key)

    monkeypatch.setattr(dg.DagsterInstance, "has_dynamic_partition", counted)
    assert call("evaluate", "output/notes") == 0
    assert asked == ["notes"]
