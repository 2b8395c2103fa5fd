"""Two collections run from the command line with the optional stages off and on: the files gain keys, placed last."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_assets_tests.export import reference
from ensemble_assets_tests.export.additions import file_changes
from ensemble_assets_tests.export.bundles import PREFIX

TERMS = {"term_weights": [{"term": "owl", "tf": 2, "weight": 0.7}, {"term": "night", "weight": 0.1}]}
COLLECTIONS = {
    "plain": [
        {"text": "Owls hunt at night.", "metadata": {"chunk_id": "a", "heading_text": "Owls", "tiny": 1e-7}},
        {"text": "Bees dance to tell\nthe way.", "metadata": {"text_preview": 1e-5, "chunk_hash": ""}},
    ],
    "with terms": [
        {"text": "| a |\n| b |", "metadata": {"sparse_features": TERMS, "token_count": "120"}},
        {"text": "No terms here", "metadata": {"heading_text": "Terms"}},
    ],
}
CLOCK = re.compile(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}"')


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both collections with the stages off, in ``off``, and on, in ``on``; all clocks of bundles made one."""
    root = tmp_path_factory.mktemp("runs")
    for name, chunks in COLLECTIONS.items():
        (root / "corpora" / name).mkdir(parents=True)
        (root / "corpora" / name / ".x_chunks.json").write_text(json.dumps(chunks))
    for output, switches in (("off", ["--disable-sparse", "--disable-rerank"]), ("on", [])):
        command = [
            sys.executable,
            "-m",
            "ensemble_assets.cli",
            "run",
            "--chunked-dir",
            "corpora",
            "--output-dir",
            output,
        ]
        done = subprocess.run([*command, *switches], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for file in (root / output).glob(f"*/{PREFIX}_*.json*"):
            file.write_text(CLOCK.sub('"then"', file.read_text(encoding="utf-8")), encoding="utf-8")
    return root


def test_without_term_weights_every_file_is_the_old_one_with_keys_added_last(runs: Path) -> None:
    files = [file for file in sorted((runs / "off" / "plain").iterdir()) if not file.name.endswith("summary.json")]
    assert {file.name.removeprefix(PREFIX) for file in files} >= {"_qdrant.jsonl", "_metadata.json", "_stats.json"}
    found = {file.name: file_changes(file, runs / "on" / "plain" / file.name) for file in files}
    assert [name for name, places in found.items() if places] == []


def test_with_term_weights_only_the_value_of_the_sparse_vector_differs(runs: Path) -> None:
    off, on = (runs / output / "with_terms" for output in ("off", "on"))
    expected = {name: (off / name).read_bytes() for name in reference.v40_part(off)}
    assert reference.v40_part(on) == expected
    for content in ("qdrant.jsonl", "metadata.json", "sparse.jsonl"):
        places = file_changes(off / f"{PREFIX}_{content}", on / f"{PREFIX}_{content}")
        assert all(re.search("/(sparse_vector|indices|values|tokens|stats)(/|:)", place) for place in places)


def test_the_manifest_gains_sections_last_and_has_two_names(runs: Path) -> None:
    for name in ("plain", "with_terms"):
        manifests = [runs / output / name / "processing_summary.json" for output in ("off", "on")]
        off, on = (json.loads(path.read_bytes()) for path in manifests)
        assert list(on)[: len(off)] == list(off)
        assert list(on)[-2:] == ["rerank_run", "sparse_run"]
        for section in ("dense_run", "compatibility", "ensemble_state"):
            assert list(on[section]) == list(off[section])


def test_the_manifests_values_are_those_that_old_readers_look_for(runs: Path) -> None:
    off, on = (
        json.loads((runs / output / "with_terms" / "processing_summary.json").read_bytes()) for output in ("off", "on")
    )
    assert on["dense_run"]["total_embeddings_generated"] == 2
    assert on["dense_run"]["models_executed"] == [on["ensemble_state"]["primary_model"]]
    assert on["telemetry"]["rotation_events_recorded"] == 0
    assert on["telemetry"]["spans"]["rag.dense"]["attributes"]["latency_ms"] > 0
    toggles = on["feature_toggles"]
    assert toggles["sources"]["sparse_models"] == "default"
    assert [row["value"] for row in toggles["provenance"] if row["key"] == "sparse_models"] == [
        toggles["sparse_models"]
    ]
    run = on["rerank_run"]
    assert (run["status"], run["payload"]["status"]) == ("executed", "executed")
    assert (run["device"], on["sparse_run"]["device"], on["dense_run"]["device"]) == ("cpu", "cpu", "cpu")
    assert run["payload"]["device_state"] == run["device_state"]
    candidates = run["payload"]["candidate_ids"]
    assert len(run["payload"]["dense_scores"]) == len(run["payload"]["candidate_metadata"]) == len(candidates) > 0
    assert all(isinstance(score, float) for score in run["payload"]["dense_scores"])
    assert off["activation_provenance_lines"][:2] == [
        "enable_rerank: off (override via --disable-rerank; default on)",
        "enable_sparse: off (override via --disable-sparse; default on)",
    ]
    assert off["feature_toggles"]["sparse_models"] == []
    assert off["activation_provenance"][-1]["value"] == []


def test_the_bundle_s_manifest_under_its_second_name_is_the_same(runs: Path) -> None:
    for folder in runs.glob("o*/[!.]*/"):
        first, second = (folder / name for name in ("processing_summary.json", f"{PREFIX}_processing_summary.json"))
        assert CLOCK.sub('"then"', first.read_text(encoding="utf-8")) == second.read_text(encoding="utf-8")
