"""A single row that does not fit: sparse takes metadata, rerank keeps the fused order, dense is an error with a name.

The stages, leases, batches and limits are real; the device is a simulated GPU with a small ceiling, on which the models
allocate what their batches take. So the rows fail because of memory, not because a test says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import DeviceError, MemoryBudgetError
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.backends.forward import Forward, ForwardFactory, OutputSpec
from ensemble_assets.compute.batching.dispatcher import Patience
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.running.doubles import dense_maker, model_folder, rerank_maker, sparse_maker
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, OtherProcesses, SimulatedDevice

MB = 1_000_000
TOKEN_BYTES = 10 * MB
CEILING = Ceiling(1_000 * MB, 0.9, 100 * MB)
MOST_TOKENS = 69
"""Of one row: ceiling, less margin, less context, by 10 MB is 70; the allocator rounds up to blocks of 2 MiB."""

SHORT, LONG = "storm wind", " ".join(["flood"] * 90)


@dataclass(frozen=True)
class OnDevice(PlainFactory):
    """A factory whose forwards take the device's memory for as long as a batch runs."""

    inner: Any

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return self.inner.outputs

    @property
    def identity(self) -> str:
        return "on-device"

    @property
    def spec(self) -> ModelSpec:
        return self.inner.spec

    def load(self, device: str) -> Forward:
        session, forward = OPEN_SESSIONS[device], self.inner.load(device)

        def run(table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
            session.allocate(batch.tokens * TOKEN_BYTES)
            try:
                return forward(table, batch)
            finally:
                session.free(batch.tokens * TOKEN_BYTES)

        run.precision = forward.precision  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]


def on_device(maker: Callable[..., ForwardFactory]) -> Any:
    return lambda *arguments: OnDevice(maker(*arguments))


@dataclass(frozen=True)
class Stage:
    """What a stage computes with, and what it reported."""

    context: ComputeContext
    log: EventLog

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event.facts for event in self.log.named(name)]


def stage_on(device: SimulatedDevice, folder: Path, patience: Patience) -> Stage:
    log = EventLog()
    gate = MemoryGate(needed_bytes=0, settle_seconds=0.0)
    lease = partial(lease_devices, lock_folder=folder / "locks", events=log, devices=[device], gate=gate)
    settings = WorkerSettings(ceiling=CEILING, workers_per_device=0, patience=patience)
    runner = TableRunner(LocalRunner(settings))
    return Stage(ComputeContext(lease=lease, runner=runner, events=log), log)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return stage_on(SimulatedDevice(total_bytes=4_000 * MB, context_bytes=200 * MB), tmp_path, Patience())


@pytest.fixture
def crowded(tmp_path: Path) -> Stage:
    """Another program holds nearly all that the ceiling allows, and keeps it."""
    others = OtherProcesses(((0.0, 850 * MB),))
    device = SimulatedDevice(total_bytes=4_000 * MB, context_bytes=200 * MB, others=others)
    return stage_on(device, tmp_path, Patience(memory=0.2, measure=0.05))


def metadata(term: str) -> str:
    return json.dumps({"sparse_features": {"term_weights": [{"term": term, "weight": 0.5}]}})


def test_a_chunk_that_does_not_fit_gets_its_metadata_terms(stage: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", "sparse", max_tokens=128)
    chunks, terms = (
        pl.Series([SHORT, LONG, SHORT + " rain"]),
        pl.Series([metadata(word) for word in ("a", "storm", "b")]),
    )
    result = encode_sparse(
        chunks, terms, pl.Series(["wind"]), [spec], stage.context, make_factory=on_device(sparse_maker())
    )
    assert result.source.tolist() == [1, 2, 1]
    assert [result.words[index] for index in result.chunks.row(1).indices] == ["storm"]
    assert result.record.fallback_reasons == {"out_of_memory": 1}
    (failed,) = stage.named("mitigation.row_failed")
    assert failed == {"row": 1, "longest": 92, "reason": "out_of_memory"}
    assert [event["source"] for event in stage.named("fallback.sparse")] == ["metadata"]
    assert stage.named("mitigation.oom")


def test_a_query_with_a_pair_that_does_not_fit_keeps_its_fused_order(stage: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", "rerank", max_tokens=128)
    chunks = pl.Series([SHORT, LONG, "rain", "valve engine"])
    queries = pl.DataFrame({"public_id": ["q1", "q2"], "text": ["wind", "piston engine"]})
    rows = [("q1", 1, 1), ("q1", 0, 2), ("q2", 2, 1), ("q2", 3, 2)]
    candidates = pl.DataFrame(
        [
            {"public_id": query, "chunk_id": f"c{row}", "row": row, "rank": rank, "score": 1.0 / rank}
            for query, row, rank in rows
        ]
    )
    candidates = candidates.with_columns(
        [pl.lit(None, dtype).alias(name) for name, dtype in CANDIDATES.items() if name not in candidates.columns]
    ).select([pl.col(name).cast(dtype) for name, dtype in CANDIDATES.items()])
    result = rerank_candidates(
        candidates, chunks, queries, spec, stage.context, RerankOptions(), make_factory=on_device(rerank_maker())
    )
    outcome = {row["public_id"]: (row["reranked"], row["reason"]) for row in result.queries.iter_rows(named=True)}
    assert outcome == {"q1": (False, "out_of_memory"), "q2": (True, None)}
    kept = result.reranked.filter(pl.col("public_id") == "q1").sort("rank")
    assert kept["chunk_id"].to_list() == ["c1", "c0"]
    assert [event["source"] for event in stage.named("fallback.rerank")] == ["fused_order"]
    assert len(stage.named("mitigation.row_failed")) == 1


def test_a_chunk_without_a_dense_vector_is_an_error_that_names_it_and_its_length(stage: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", max_tokens=128)
    ids = pl.Series(["first", "the-long-one", "last"])
    with pytest.raises(MemoryBudgetError) as caught:
        encode_dense(
            pl.Series([SHORT, LONG, SHORT + " rain"]),
            pl.Series(["wind"]),
            [spec],
            stage.context,
            chunk_ids=ids,
            make_factory=on_device(dense_maker()),
        )
    message = str(caught.value)
    assert "chunk the-long-one of 92 tokens (out_of_memory)" in message
    assert "Raise the memory ceiling or lower the model's max_tokens" in message
    assert "flood" not in message
    assert len(stage.named("lease.released")) == 1


@pytest.mark.parametrize(("words", "fits"), [(MOST_TOKENS - 2, True), (MOST_TOKENS - 1, False)])
def test_a_single_row_may_go_to_the_hard_limit_less_the_margin(
    stage: Stage, tmp_path: Path, words: int, fits: bool
) -> None:
    """The soft limit is for batches: a row that cannot be split may use all of the cap."""
    spec = model_folder(tmp_path / "m", max_tokens=128)
    encode = partial(encode_dense, pl.Series([" ".join(["rain"] * words)]), pl.Series([SHORT]), [spec], stage.context)
    if fits:
        assert len(encode(make_factory=on_device(dense_maker())).models[0].chunks) == 1
    else:
        with pytest.raises(MemoryBudgetError):
            encode(make_factory=on_device(dense_maker()))


def test_memory_that_others_keep_is_waited_for_and_then_a_clear_error(crowded: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", max_tokens=128)
    with pytest.raises(DeviceError) as caught:
        encode_dense(
            pl.Series([SHORT]), pl.Series(["wind"]), [spec], crowded.context, make_factory=on_device(dense_maker())
        )
    assert "other processes held 1050000000 bytes for 0 s" in str(caught.value)
    assert "device.ceiling_gb" in str(caught.value)
    assert [event["others_bytes"] for event in crowded.named("mitigation.back_off")] == [
        1050 * MB
    ]  # nothing is left, so the context counts too
    assert [event["reason"] for event in crowded.named("worker.lost")] == ["device_busy"]
    assert len(crowded.named("lease.released")) == 1


def test_the_sparse_stage_falls_back_where_others_keep_the_memory(crowded: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", "sparse", max_tokens=128)
    terms = pl.Series([metadata("storm")])
    result = encode_sparse(
        pl.Series([SHORT]), terms, pl.Series(["wind"]), [spec], crowded.context, make_factory=on_device(sparse_maker())
    )
    assert result.source.tolist() == [2]
    assert result.record.fallback_reasons == {"device_failed": 1}


def test_every_batch_that_did_not_fit_was_halved_and_the_rest_is_done_once(stage: Stage, tmp_path: Path) -> None:
    spec = model_folder(tmp_path / "m", max_tokens=128)
    texts = pl.Series([" ".join(["wind"] * (1 + row % 40)) + f" {'abcdefghij'[row % 10]}" for row in range(80)])
    result = encode_dense(texts, pl.Series(["rain"]), [spec], stage.context, make_factory=on_device(dense_maker()))
    assert np.isfinite(result.models[0].chunks).all()
    assert (np.abs(np.linalg.norm(result.models[0].chunks, axis=1) - 1) < 1e-5).all()
    ooms, splits = stage.named("mitigation.oom"), stage.named("mitigation.split")
    assert len(ooms) == len(splits) >= 1
    for oom, split in zip(ooms, splits, strict=True):
        assert oom["tokens"] * TOKEN_BYTES > oom["cap_bytes"]
        assert split["into"] == oom["rows"] // 2
    assert not stage.named("mitigation.row_failed")
    assert result.record.peak_bytes <= CEILING.hard_bytes
