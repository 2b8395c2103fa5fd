"""Rows that other collections have stored are copied, so that shards become one collection without computing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.running.stored_rows import store
from ensemble_assets_tests.compute.running.doubles import IDS, DoubleFactory, run_here, table_of
from ensemble_assets_tests.compute.stages.rerank.test_kept_states import StatesOfIds

VECTOR = {"vector": OutputSpec((4,), "float32")}
LEASE = Lease((CpuDevice(),))
rows_of_ids = st.lists(st.lists(st.integers(5, len(IDS) - 1), min_size=1, max_size=9), max_size=20)


def run(rows, factory, folder: Path, others: tuple[Path, ...] = (), shard_tokens: int = 6) -> TableResult:
    runner = replace(in_process_runner(64), folder=folder, shard_tokens=shard_tokens, others=others)
    return runner(table_of(rows), factory, lease=LEASE, events=EventLog())


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=20, deadline=None)
@given(first=rows_of_ids, second=rows_of_ids, further=rows_of_ids, tokens=st.integers(1, 40))
def test_the_rows_of_shards_are_not_computed_again(tmp_path_factory, first, second, further, tokens):
    folder = tmp_path_factory.mktemp("rows")
    shards = folder / "one", folder / "two"
    for place, rows in zip(shards, (first, second), strict=True):
        run(rows, DoubleFactory(VECTOR), place, shard_tokens=tokens)
    before = [files(place) for place in shards]
    factory, union = DoubleFactory(VECTOR), [*first, *second, *further]
    result = run(union, factory, folder / "both", shards, tokens)
    expected = run_here(table_of(union), DoubleFactory(VECTOR), 64).outputs
    np.testing.assert_array_equal(result.outputs["vector"], expected["vector"])
    stored = {tuple(row) for row in first + second}
    assert sum(batch.size for batch in factory.journal.batches) == len({tuple(row) for row in further} - stored)
    assert result.reused_rows == sum(tuple(row) in stored for row in union)
    assert [files(place) for place in shards] == before
    assert run(union, DoubleFactory(VECTOR), folder / "both", (), tokens).reused_rows == len(union)  # they are copies


def test_vectors_and_states_of_tokens_are_copied_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_COPIED_BYTES", 100)
    rows = [[5, 6, 7, 8], [9, 10], [11], [12, 13, 14, 15, 16, 17], [18, 19]]
    run(rows[:3], StatesOfIds(vectors=True), tmp_path / "one", shard_tokens=100)
    run(rows[2:], StatesOfIds(vectors=True), tmp_path / "two", shard_tokens=100)
    factory = StatesOfIds(vectors=True)
    taken = run(rows, factory, tmp_path / "both", (tmp_path / "one", tmp_path / "two"))
    computed = run(rows, StatesOfIds(vectors=True), tmp_path / "alone")
    assert factory.rows == 0
    np.testing.assert_array_equal(taken.outputs["vector"], computed.outputs["vector"])
    every = np.arange(len(rows))
    assert taken.by_token is not None
    assert computed.by_token is not None
    assert taken.by_token.lengths.tolist() == [len(row) for row in rows]
    for name in (STATE, SCALE):
        np.testing.assert_array_equal(taken.by_token.read(name, every), computed.by_token.read(name, every))


def test_rows_of_another_model_are_not_taken(tmp_path):
    rows = [[5, 6], [7]]
    run(rows, DoubleFactory(VECTOR, identity="other weights"), tmp_path / "one")
    assert run(rows, DoubleFactory(VECTOR), tmp_path / "two", (tmp_path / "one",)).reused_rows == 0
