"""Workers of whole stages: started once for each model, kept for shards, slices and passes, the next ones in time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import polars as pl
import psutil
import pytest

from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.stages import encoder_input
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.depth import Allowance
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets_tests.compute.running.doubles import (
    VECTOR,
    DoubleFactory,
    dense_maker,
    faults,
    model_folder,
    rerank_maker,
    sparse_maker,
)
from ensemble_assets_tests.compute.running.worker_cases import (
    ActingLog,
    LoadsAfter,
    Unloadable,
    fixed_batches,
    is_running,
    random_table,
    simulated,
)
from ensemble_assets_tests.simulated.model import Faults, SimulatedModel, Speed

CHUNKS = pl.Series(["storm flood wind", "engine piston valve", "rain nan alpha", "beta gamma delta", "wind rain query"])
METADATA = pl.Series([None] * len(CHUNKS), dtype=pl.String)
QUERIES = pl.DataFrame({"public_id": ["q1", "q2"], "text": ["storm flood wind rain", "engine valve nan"]})
DEVICES = simulated(2)


@pytest.fixture
def context(tmp_path):
    """Two simulated devices, one worker each, and a shard for every few rows."""
    log = ActingLog()
    settings = WorkerSettings(fixed_batches(16), work_folder=tmp_path / "work")
    runner = TableRunner(LocalRunner(settings, DEVICES), tmp_path / "rows", shard_tokens=8)
    lease = partial(lease_devices, lock_folder=tmp_path / "locks", events=log, devices=DEVICES, timeout=30.0)
    return ComputeContext(lease=lease, runner=runner, events=log)


def starts(log) -> Counter[tuple[str, str]]:
    """Starts of workers by the model that the devices were leased for, and device."""
    model, counts = "", Counter()
    for event in log.events:
        if event.name == "lease.acquired":
            model = str(event.facts["model"])
        if event.name == "worker.started":
            counts[model, str(event.facts["device"])] += 1
    return counts


def once(*models: str) -> Counter[tuple[str, str]]:
    return Counter((model, device.uuid) for model in models for device in DEVICES)


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children() if is_running(process)}


def test_dense_models_start_their_workers_once_and_the_next_ones_while_they_compute(tmp_path, context):
    specs = [model_folder(tmp_path / name) for name in ("first", "second")]
    alive: list[set[int]] = []
    done = tmp_path / "done"

    def act(log, name, facts):
        if name == "batch.done" and len(log.named("lease.acquired")) == len(DEVICES):  # the first model's
            alive.append(children())
            done.touch()

    before, context.events.act = children(), act

    def maker(spec, files, runtime):  # one device loads when the other has computed, so that its answer is a late one
        return LoadsAfter(VECTOR, faults(nan="nan"), identity=spec.slug, spec=spec, file=done, on="SIM-1")

    result = encode_dense(CHUNKS, QUERIES["text"], specs, context, make_factory=maker)
    assert len(result.models) == 2
    assert result.record.precision_redone == 4  # a chunk and a query of each model: shards went from fp16 to fp32
    assert starts(context.events) == once("first", "second")
    of_second = {int(event.facts["pid"]) for event in context.events.named("worker.started")[2:]}
    assert alive
    assert all(of_second <= pids for pids in alive), "they were there whenever the first model's batches ended"
    assert children() == before


def test_sparse_keeps_its_workers_for_queries_that_are_run_again(tmp_path, context):
    spec = model_folder(tmp_path / "sparse", "sparse")
    result = encode_sparse(CHUNKS, METADATA, QUERIES["text"], [spec], context, top_k=2, make_factory=sparse_maker())
    assert (result.record.status, result.record.queries_pruned) == ("completed", 0)
    assert max(result.queries.counts) > 2
    assert starts(context.events) == once("sparse")


@pytest.mark.parametrize("slice_bytes", [10, 10**9])
def test_a_worker_starts_once_for_each_stage_and_model_however_many_slices_of_texts(
    tmp_path, context, monkeypatch, slice_bytes
):
    """A slice is a table of its own; each is served by the workers of the first."""
    monkeypatch.setattr(encoder_input, "SLICE_BYTES", slice_bytes)
    dense = [model_folder(tmp_path / name) for name in ("first", "second")]
    sparse = model_folder(tmp_path / "sparse", "sparse")
    context = replace(context, runner=TableRunner(context.runner.runner))  # no shards beside them
    encode_dense(CHUNKS, QUERIES["text"], dense, context, make_factory=dense_maker())
    encode_sparse(CHUNKS, METADATA, QUERIES["text"], [sparse], context, top_k=9, make_factory=sparse_maker())
    tables = len(context.events.named("batch.planned"))
    assert tables > 6 if slice_bytes == 10 else tables == 3
    assert starts(context.events) == once("first", "second", "sparse")


def test_rerank_keeps_its_workers_for_all_slices(tmp_path, context):
    spec = model_folder(tmp_path / "rerank", "rerank")
    rows = [
        {"public_id": query, "rank": at + 1, "row": at, "chunk_id": f"c{at}", "score": 1 / (at + 2)}
        for query in QUERIES["public_id"]
        for at in range(len(CHUNKS))
    ]
    result = rerank_candidates(
        pl.DataFrame(rows, schema=dict(CANDIDATES)), CHUNKS, QUERIES, spec, context,
        RerankOptions(depth=5, allowance=Allowance("own_dense", 1e6, 1, "", 1.0)), make_factory=rerank_maker(),
    )  # fmt: skip
    assert result.record.queries_reranked == 2
    assert len(context.events.named("batch.planned")) == 4  # depths 1, 2, 4 and 5
    assert starts(context.events) == once("rerank")


def test_a_worker_that_was_lost_is_started_again_for_the_next_table_only(tmp_path, context):
    """A device is given up for a table, not for the stage: the next table starts its worker anew."""
    model = SimulatedModel(faults=Faults(lost_at=0, only_on=frozenset({"SIM-1"})))
    tables = [random_table(60, seed=seed) for seed in (1, 2)]
    with (
        context.lease(model="m", stage="dense") as lease,
        TableRunner(context.runner.runner).holding(lease, context.events) as runner,
    ):
        for table in tables:
            result = runner(table, model, lease=lease, events=context.events)
            assert not result.failed_rows
            assert (result.outputs["vector"][:, 0] == table.lengths).all()
    assert starts(context.events)["m", "SIM-0"] == 1
    assert starts(context.events)["m", "SIM-1"] >= 2


def test_a_worker_that_loads_while_the_others_do_a_table_helps_with_the_next(tmp_path, context):
    model, tables = Unloadable(error="late", on="SIM-1"), [random_table(9, seed=seed) for seed in range(3)]
    slow = replace(model, speed=Speed(1e6, 1.0))
    with (
        context.lease(model="m", stage="dense") as lease,
        TableRunner(context.runner.runner).holding(lease, context.events) as runner,
    ):
        for table, factory in ((tables[0], model), (tables[1], model), (tables[2], slow)):
            result = runner(table, factory, lease=lease, events=context.events)
            assert not result.failed_rows
    assert not context.events.named("worker.lost")
    assert starts(context.events) == once("m")
    assert {event.facts["device"] for event in context.events.named("batch.done")} == {"SIM-0", "SIM-1"}


def test_workers_started_for_a_model_that_computes_nothing_are_gone_with_the_stage(tmp_path, context):
    spec, before = model_folder(tmp_path / "dense"), children()
    encode_dense(CHUNKS, QUERIES["text"], [spec], context, make_factory=dense_maker())
    started = len(context.events.named("worker.started"))
    again = encode_dense(CHUNKS, QUERIES["text"], [spec], context, make_factory=dense_maker())
    assert again.record.reused == len(CHUNKS) + len(QUERIES)
    assert len(context.events.named("worker.started")) == started
    assert children() == before


def test_a_process_that_is_started_ahead_holds_no_lock_and_no_device(tmp_path, context):
    factory = DoubleFactory(VECTOR)
    with context.expecting(1) as expecting:
        expecting.start_workers(factory)
        ahead = children()
        expecting.start_workers(factory)
        assert children() == ahead, "they are started once"
        with lease_devices(
            "other", "dense", lock_folder=tmp_path / "locks", events=ActingLog(), devices=DEVICES, timeout=0.0
        ):
            pass
        assert len(ahead) >= len(DEVICES)
    assert not any(psutil.pid_exists(pid) and is_running(psutil.Process(pid)) for pid in ahead)
