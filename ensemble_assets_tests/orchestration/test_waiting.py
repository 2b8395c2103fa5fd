"""Waiting for a device: the CPU is nobody's, and a wait that was asked for is named and is no stage time."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.build import build_definitions
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.pipeline.stage_run import Progress
from ensemble_assets_tests.orchestration.pipeline import Pipeline

WAIT = 2.0
OPTIONS = {"device.lease_cpu": True, "enable_sparse": False, "enable_rerank": False}


@dataclass
class Seen(Progress):
    """What the console would show."""

    waits: list[str] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    advanced: list[tuple[int, int]] = field(default_factory=list)

    def stage_advanced(self, done: int, total: int) -> None:
        self.advanced.append((done, total))

    def stage_waits(self, stage: str, collection: str, holder: str) -> None:
        self.waits.append(f"{stage} {collection} {holder}")

    def stage_finished(self, collection: str, record: Record) -> None:
        self.records[record.stage] = record


def hold_cpu(folder: Path, until: threading.Event) -> threading.Thread:
    """Another run of this user that has the CPU."""
    held = threading.Event()

    def hold() -> None:
        with lease_devices("other-model", "sparse", lock_folder=folder, events=EventLog(), devices=[CpuDevice()]):
            held.set()
            until.wait(120)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(60)
    return thread


@pytest.mark.parametrize("folder", ["locks", f"locks/user-{os.getuid()}"])
def test_a_cpu_is_not_waited_for(pipeline: Pipeline, folder: str) -> None:
    until = threading.Event()
    holder = hold_cpu(pipeline.root / folder, until)
    outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False, "device.lease_timeout": 0.0})
    until.set()
    holder.join()
    assert outcome.succeeded, outcome.error
    assert outcome.artefact("dense_embeddings").record.waited_for == ""


def test_a_wait_is_named_and_is_no_stage_time(pipeline: Pipeline) -> None:
    until, seen = threading.Event(), Seen()
    holder = hold_cpu(pipeline.root / "locks" / f"user-{os.getuid()}", until)
    original = seen.stage_waits

    def end_soon(*words: str) -> None:
        original(*words)
        threading.Timer(WAIT, until.set).start()

    seen.stage_waits = end_soon  # type: ignore[method-assign]
    job = build_definitions(computing=pipeline.computing, progress=seen).resolve_job_def(RETRIEVAL_BUNDLE)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        started = time.monotonic()
        result = job.execute_in_process(
            partition_key="notes", instance=instance, run_config=pipeline.config(OPTIONS), raise_on_error=False
        )
        whole = time.monotonic() - started
        lines = [entry.user_message for entry in instance.all_logs(result.run_id) if not entry.is_dagster_event]
    holder.join()
    assert result.success
    assert len(seen.waits) == 1
    for part in ("dense notes", "stage sparse", "model other-model", f"process {os.getpid()} of user ", "since 20"):
        assert part in seen.waits[0]
    assert any("waits: " in line and "other-model" in line for line in lines)
    first, last = seen.advanced[0], seen.advanced[-1]  # the batches of the dense stage, the only one with a model here
    assert first[0] == 0 < first[1]
    assert last[0] == last[1] > 0
    dense = seen.records["dense"]
    assert dense.waited_seconds >= WAIT * 0.9
    assert "other-model" in dense.waited_for
    assert dense.wall_seconds < whole - WAIT * 0.9
    manifest = json.loads((pipeline.root / "output" / "notes" / "processing_summary.json").read_text())
    attributes = manifest["telemetry"]["spans"]["rag.dense"]["attributes"]
    assert attributes["wait_seconds"] >= WAIT * 0.9
    assert attributes["latency_seconds"] < whole - WAIT * 0.9
    assert manifest["performance_baseline"]["stage_seconds"]["dense"] == dense.wall_seconds
    assert manifest["dense_run"]["seconds"] < whole - WAIT * 0.9
    assert "other-model" not in json.dumps(manifest)
