"""Canaries in chunks and queries, through the whole pipeline: none gets into anything that says how a run went.

Runs: default-on, everything falling back with exceptions that quote what they read, and failures. The bundle's own
files hold chunk texts by contract; gates look after them (``test_checks``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.run_end import end_trace
from ensemble_assets.pipeline.bundle.report import report_path
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, fast_factories
from ensemble_assets_tests.orchestration.stored_text import run_places
from ensemble_assets_tests.orchestration.troubled import troubled
from ensemble_assets_tests.telemetry.canaries import CANARIES, leaks
from ensemble_assets_tests.telemetry.receivers import http_receiver

QUOTED = " | ".join(CANARIES)


def _write(folder: Path) -> None:
    folder.mkdir(parents=True)
    chunks = [
        {
            "text": f"Note {row}: {canary} was mentioned here.",
            "metadata": {
                "chunk_id": f"c{row}", "heading_text": canary, "token_count": 9,
                "sparse_features": {"term_weights": [{"term": word, "weight": 0.5} for word in canary.split()]},
            },
        }
        for row, canary in enumerate(CANARIES)
    ]  # fmt: skip
    (folder / "notes_chunks.json").write_text(json.dumps(chunks))
    queries = [{"query_id": canary, "text": f"what about {canary}"} for canary in CANARIES]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    qrels = ["query-id\tcorpus-id\tscore", *(f"{canary}\tc{row}\t1" for row, canary in enumerate(CANARIES))]
    (folder / "qrels.tsv").write_text("\n".join(qrels) + "\n")


def _broken_queries(folder: Path) -> None:
    (folder / "queries.jsonl").write_text(json.dumps({"query_id": "q1", "text": QUOTED})[:-3] + "\n")


FAST = fast_factories()
QUOTING: dict[Any, Any] = {"raises_on": None, "says": QUOTED}
CASES: dict[str, tuple[dict[Any, Any], bool]] = {
    "default": (FAST, True),
    "fallback": (
        {**FAST, "sparse": troubled(sparse_double(), **QUOTING), "rerank": troubled(rerank_double(), **QUOTING)}, True
    ),
    "failure of the model": ({**FAST, "dense": troubled(dense_double(), **QUOTING)}, False),
    "failure of the input": (FAST, False),
}  # fmt: skip


@pytest.fixture(params=CASES)
def said(
    request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, bytes]]:  # fmt: skip
    """Everything that a run said, by place."""
    factories, succeeds = CASES[request.param]
    caplog.set_level(logging.DEBUG)
    _write(tmp_path / "corpora" / "notes")
    if request.param == "failure of the input":
        _broken_queries(tmp_path / "corpora" / "notes")
    pipeline = Pipeline(tmp_path, Computing(factories))
    with http_receiver() as otlp, http_receiver() as gateway:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint)
        options = {"metrics.textfile_dir": str(tmp_path / "prom"), "metrics.pushgateway": gateway.endpoint}
        places = _run(pipeline, options, succeeds)
        places["otlp"] = b"".join(otlp.bodies)
        places["pushed"] = b"".join([*gateway.bodies, *map(str.encode, gateway.paths)])
    captured = capfd.readouterr()
    places |= {"stdout": captured.out.encode(), "stderr": captured.err.encode(), "log": caplog.text.encode()}
    return places


def _run(pipeline: Pipeline, options: dict[str, Any], succeeds: bool) -> dict[str, bytes]:
    places: dict[str, bytes] = {}
    job = build_definitions(computing=pipeline.computing).resolve_job_def(RETRIEVAL_BUNDLE)
    instance_folder = pipeline.root / "instance"
    instance_folder.mkdir()
    private = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(instance_folder), overrides=private) as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        result = job.execute_in_process(
            partition_key="notes", instance=instance, run_config=pipeline.config(options), raise_on_error=False
        )
        end_trace(instance, result.run_id)
        for place in run_places(instance, result.run_id):
            places[place.name.split(" in ")[1]] = b"".join(place.blocks(0))
    assert result.success is succeeds
    files = [*(pipeline.root / "output" / ".artifacts" / "telemetry").glob("*"), *(pipeline.root / "prom").glob("*")]
    bundle = pipeline.root / "output" / "notes"
    files += [path for path in (report_path(bundle), bundle / "processing_summary.json") if path.exists()]
    files += [path for path in pipeline.root.rglob("artefact.json") if path.is_file()]
    for path in files:
        places[f"{path.parent.parent.name}/{path.name}"] = path.read_bytes()
    return places


def test_no_canary_is_said_anywhere(said: dict[str, bytes]) -> None:
    assert {place: leaks(data) for place, data in said.items() if leaks(data)} == {}
    assert len(said["Dagster's event storage"]) > 10_000
    journals = [data for place, data in said.items() if "telemetry-" in place]
    assert journals
    assert b"rag.run" in journals[0]
    assert b"rag.run" in said["otlp"]
