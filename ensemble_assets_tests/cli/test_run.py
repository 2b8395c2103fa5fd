"""The command line: exit codes, messages a user can act on, and a real run on the embedded models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_assets.cli.run import run_collections
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets_tests.orchestration.pipeline import PREFIX, write_collection


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("EMBEDDER_") and k != "DAGSTER_HOME"}
    env = {**inherited, "PYTHONPATH": root, "EMBEDDER_KEY_FILE": str(cwd / "key"), **environment}
    command = [sys.executable, "-m", "ensemble_assets.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


@pytest.mark.models
def test_a_default_run_on_the_embedded_models(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    finished = run("run", "--chunked-dir", "corpora", "--output-dir", "out", "--json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout)["collections"][0]
    assert [stage["stage"] for stage in summary["stages"]] == [
        "chunks", "queries", "dense", "sparse", "fusion", "rerank", "evaluation", "export",
    ]  # fmt: skip
    assert {stage["status"] for stage in summary["stages"]} == {"completed"}
    assert (tmp_path / "out" / "notes" / f"{PREFIX}_rerank.jsonl").is_file()
    assert Path(summary["report"]) == tmp_path / "out" / "notes.report.html"
    assert Path(summary["report"]).is_file()
    question = "where is the violin number 3"
    asked = run("search", "out/notes", question, "--top", "3", "--json", cwd=tmp_path)
    assert json.loads(asked.stdout)[0]["chunk_id"] == "c3", asked.stderr
    explained = run("search", "out/notes", question, "--top", "1", "--explain", cwd=tmp_path).stdout
    assert "Dense 1, Sparse 1, BM25 1, Fused 1, late interaction 0." in explained
    assert "reranker" not in explained, "it orders nothing beside late interaction, so it is not asked"
    assert run("search", "out/notes", " ", cwd=tmp_path).stderr.endswith("Give some words, or none for a prompt\n")
    code = f"import ensemble_assets; print(ensemble_assets.search('out/notes', {question!r})[0].heading)"
    finished_python = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert finished_python.stdout == "violin 3\n"
    assert "where is the" not in finished.stdout + finished.stderr


@pytest.mark.models
def test_a_step_that_fails_after_the_export_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_assets.orchestration.checks import bundle as checks

    def unreadable(*_: object) -> object:
        raise ArtefactError("notes: the bundle cannot be read")

    monkeypatch.setattr(checks, "bundle_results", unreadable)
    write_collection(tmp_path / "corpora" / "notes")
    folders = {"chunked_dir": "corpora", "output_dir": "out", "cache_dir": "cache", "key_file": "key"}
    overrides = {f"paths.{name}": str(tmp_path / folder) for name, folder in folders.items()}
    (outcome,) = run_collections(["notes"], overrides | {"enable_sparse": "off", "enable_rerank": "off"}, {})
    assert not outcome.succeeded
    assert outcome.error == "bundle_gates: notes: the bundle cannot be read"


@pytest.mark.models
def test_flags_switch_stages_off_and_the_manifest_says_who_did(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    finished = run(
        "run", "--chunked-dir", "corpora", "--output-dir", "out", "--disable-rerank", cwd=tmp_path,
        EMBEDDER_ENABLE_SPARSE="off",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "--disable-rerank" in finished.stdout
    assert "environment variable EMBEDDER_ENABLE_SPARSE" in finished.stdout
    toggles = json.loads((tmp_path / "out/notes/processing_summary.json").read_text())["feature_toggles"]
    assert toggles["sources"]["enable_rerank"] == "--disable-rerank"
    assert toggles["sources"]["enable_sparse"] == "environment variable EMBEDDER_ENABLE_SPARSE"
    assert (toggles["enable_rerank"], toggles["enable_sparse"]) == (False, False)
    renamed = run(
        "run", "--chunked-dir", "corpora", "--output-dir", "out", "--disable-rerank", "--disable-sparse",
        "--set", "export.prefix=other", cwd=tmp_path,
    )  # fmt: skip
    assert renamed.returncode == 0, renamed.stdout + renamed.stderr
    assert [path.name for path in (tmp_path / "out" / "notes").glob("*_qdrant.jsonl")] == ["other_qdrant.jsonl"]


def test_an_output_folder_that_cannot_be_made_is_bad_usage(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    (tmp_path / "out").write_text("a file")
    finished = run("run", "--chunked-dir", "corpora", "--output-dir", "out/deep", cwd=tmp_path)
    assert finished.returncode == 2
    assert "paths.output_dir: out/deep is no folder for results (Not a directory)" in finished.stderr


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("export.prefix=a b", "'a b' is not accepted for export.prefix; expected letters, digits"),
        ("rerank.cross_encoder=off", "late interaction has no share (rerank.late_weight), so nothing reranks. Switch"),
        ("fusion.weights_file=absent.json", "fusion.weights_file: absent.json is not a file"),
        ("paths.artifacts_dir=zz://x", "paths.artifacts_dir: zz://x cannot be opened (Unsupported filesystem: 'zz')"),
    ],
)
def test_a_value_that_no_stage_could_use_is_refused_before_the_first(
    assignment: str, problem: str, tmp_path: Path
) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    options = ["--set", assignment, "--set", "rerank.late_weight=0"]
    finished = run("run", "--chunked-dir", "corpora", *options, cwd=tmp_path)
    assert finished.returncode == 2
    assert problem in finished.stderr
    assert "chunks" not in finished.stdout + finished.stderr.replace(problem, "")


def test_a_missing_folder_of_dagster_is_bad_usage(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    finished = run("run", "--chunked-dir", "corpora", cwd=tmp_path, DAGSTER_HOME=str(tmp_path / "home"))
    assert finished.returncode == 2
    assert f"DAGSTER_HOME: {tmp_path / 'home'} is no folder. Make it" in finished.stderr


def test_broken_input_is_exit_code_1_and_names_file_and_place(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    (tmp_path / "corpora" / "notes" / "more_chunks.json").write_text('[{"text": "fine"},\n {"text": ]')
    finished = run("run", "--chunked-dir", "corpora", "--output-dir", "out", cwd=tmp_path)
    assert finished.returncode == 1
    assert "more_chunks.json" in finished.stdout
    assert "line 2" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr
    assert not (tmp_path / "out" / "notes").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "rerank.depth"], "expected KEY=VALUE"),
        (["run", "--set", "rerank.detph=3"], "Did you mean 'rerank.depth'?"),
        (["run", "--set", "rerank_depth=3"], "Did you mean 'rerank.depth'?"),
        (["run", "--set", "rerank=off"], "Did you mean 'enable_rerank' or "),
        (["run", "--ensemble-models", "nosuch"], "nosuch"),
        (["run", "--set", "models.rerank=nosuch"], "nosuch"),
        (["run", "--set", "rerank.depth=zero"], "expected a whole number"),
        (["run", "--profile", "huge"], "expected one of embedded"),
        (["run", "--no-such-flag"], "No such option"),
        (["run", "nowhere"], "nowhere: is not a folder"),
        (["run", "here", "--chunked-dir", "there"], "give here or there"),
        (["walk"], "No such command"),
    ],
)
def test_bad_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    finished = run(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.splitlines()) <= 5


def test_a_mistyped_variable_is_exit_code_2(tmp_path: Path) -> None:
    finished = run("doctor", cwd=tmp_path, EMBEDDER_ENABLE_RERNK="off")
    assert finished.returncode == 2
    assert "EMBEDDER_ENABLE_RERNK: no option has it. Did you mean EMBEDDER_ENABLE_RERANK?" in finished.stderr


def test_a_missing_folder_and_an_unknown_collection_say_what_is_there(tmp_path: Path) -> None:
    missing = run("run", "--chunked-dir", "nowhere", cwd=tmp_path)
    assert (missing.returncode, "nowhere" in missing.stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    empty = run("run", "--chunked-dir", "empty", cwd=tmp_path)
    assert (empty.returncode, "*_chunks.json" in empty.stderr) == (2, True)
    write_collection(tmp_path / "corpora" / "notes")
    unknown = run("run", "--chunked-dir", "corpora", "--collections", "novels", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "novels" in unknown.stderr
    queries = run("run", "--chunked-dir", "corpora", "--queries", "nope.jsonl", cwd=tmp_path)
    assert (queries.returncode, queries.stderr) == (2, "Error: --queries nope.jsonl: there is no such file\n")
    assert "notes" in unknown.stderr


def test_one_broken_collection_or_awkward_folder_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "my docs", "my.docs"):
        write_collection(tmp_path / "corpora" / name)
    (tmp_path / "corpora" / "a" / "notes_chunks.json").write_text("[{")
    write_collection(tmp_path / "corpora" / "b")
    finished = run(
        "run", "--chunked-dir", "corpora", "--output-dir", "out", "--json", "--disable-sparse", "--disable-rerank",
        cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 1
    by_name = {c["collection"]: c["succeeded"] for c in json.loads(finished.stdout)["collections"]}
    assert by_name == {"a": False, "b": True, "my docs": False, "my.docs": False}
    assert "both get the name 'my_docs'. Rename one of the folders" in finished.stderr
