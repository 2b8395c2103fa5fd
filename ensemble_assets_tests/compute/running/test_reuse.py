"""Rows are computed once: what is reused, what invalidates it, and what a killed run leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import row_keys, shards
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.running.stored_rows import store
from ensemble_assets.compute.running.stored_rows.store import open_store, secret_of, store_name
from ensemble_assets_tests.compute.running.doubles import IDS, DoubleFactory, faults, run_here, table_of
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

VECTOR = {"vector": OutputSpec((4,), "float32")}
SPARSE = {
    "index": OutputSpec((5,), "int32"),
    "weight": OutputSpec((5,), "float32"),
    "active": OutputSpec((), "int32"),
}
ROWS = [[5, 6, 7], [8], [9, 10], [5, 6, 7], [11, 12, 13, 14]]
LEASE = Lease((CpuDevice(),))


def reuse(folder: Path, table, factory, shard_tokens=6, keep_loaded=True):
    runner = replace(in_process_runner(64), folder=folder, shard_tokens=shard_tokens)
    with loaded_once(factory) if keep_loaded else nullcontext(factory) as model:
        return runner(table, model, lease=LEASE, events=EventLog())


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


rows_of_ids = st.lists(st.lists(st.integers(5, len(IDS) - 1), min_size=1, max_size=9), min_size=1, max_size=25)


@settings(max_examples=12, deadline=None)
@given(first=rows_of_ids, second=rows_of_ids, outputs=st.sampled_from([VECTOR, SPARSE]), tokens=st.integers(1, 40))
def test_reused_rows_are_what_computing_them_gives(tmp_path_factory, first, second, outputs, tokens):
    folder = tmp_path_factory.mktemp("rows")
    factory = DoubleFactory(outputs)
    for rows in (first, second + first[::2], first):
        result = reuse(folder, table_of(rows), factory, tokens)
        assert_same(result.outputs, run_here(table_of(rows), factory, 64).outputs)
        assert not result.failed_rows


def test_a_second_run_computes_nothing_and_loads_no_model(tmp_path):
    table, factory = table_of(ROWS), DoubleFactory(VECTOR)
    first = reuse(tmp_path, table, factory)
    again = DoubleFactory(VECTOR)
    second = reuse(tmp_path, table, again)
    assert_same(second.outputs, first.outputs)
    assert again.journal.loaded == []
    assert (first.reused_rows, second.reused_rows) == (0, len(ROWS))
    assert (second.device, second.tokens, second.precision) == (UsedDevices(), 0, first.precision)


def test_only_changed_rows_are_computed(tmp_path):
    reuse(tmp_path, table_of(ROWS), DoubleFactory(VECTOR))
    changed = DoubleFactory(VECTOR)
    result = reuse(tmp_path, table_of([*ROWS[:1], [20, 21], *ROWS[2:]]), changed)
    assert result.tokens == 2
    assert result.reused_rows == len(ROWS) - 1
    assert sum(batch.size for batch in changed.journal.batches) == 1


def test_the_model_is_loaded_once_for_all_shards_and_released(tmp_path):
    factory = DoubleFactory(VECTOR)
    reuse(tmp_path, table_of(ROWS), factory, shard_tokens=1)
    assert len(factory.journal.loaded) == 1
    reuse(tmp_path / "other", table_of(ROWS), factory, shard_tokens=1, keep_loaded=False)
    assert len(factory.journal.loaded) == 1 + 4


def test_another_identity_reuses_nothing(tmp_path):
    reuse(tmp_path, table_of(ROWS), DoubleFactory(VECTOR))
    assert reuse(tmp_path, table_of(ROWS), DoubleFactory(VECTOR, identity="other weights")).reused_rows == 0
    wider = {"vector": OutputSpec((5,), "float32")}
    assert reuse(tmp_path, table_of(ROWS), DoubleFactory(wider)).reused_rows == 0


def test_segments_are_part_of_a_row(tmp_path):
    rows = [[5, 6, 7]]
    reuse(tmp_path, table_of(rows, second_from=[1]), DoubleFactory(VECTOR))
    assert reuse(tmp_path, table_of(rows, second_from=[1]), DoubleFactory(VECTOR)).reused_rows == 1
    assert reuse(tmp_path, table_of(rows, second_from=[2]), DoubleFactory(VECTOR)).reused_rows == 0


def test_a_row_that_failed_is_tried_again_next_time(tmp_path):
    rows = [[5, 6], [IDS["broken"], 7], [IDS["broken"], 7], [8]]
    broken = DoubleFactory(VECTOR, faults(raises="broken"))
    result = reuse(tmp_path, table_of(rows), broken, shard_tokens=100)
    assert sorted(result.failed_rows) == [1, 2]
    assert not result.outputs["vector"][[1, 2]].any()
    repaired = reuse(tmp_path, table_of(rows), DoubleFactory(VECTOR))
    assert not repaired.failed_rows
    assert repaired.reused_rows == 2


def test_events_call_rows_by_their_numbers_in_the_table(tmp_path):
    rows = [[5, 6, 7], [5, 6, 8], [IDS["broken"]], [9]]
    events = EventLog()
    runner = replace(in_process_runner(64), folder=tmp_path, shard_tokens=6)
    runner(table_of(rows), DoubleFactory(VECTOR, faults(raises="broken")), lease=LEASE, events=events)
    assert [event.facts["row"] for event in events.named("mitigation.row_failed")] == [2]


def test_rows_that_were_not_finite_are_stored_as_redone_in_fp32(tmp_path):
    rows = [[5, 6], [IDS["nan"], 7]]
    factory = DoubleFactory(VECTOR, faults(nan="nan"))
    first = reuse(tmp_path, table_of(rows), factory)
    assert first.precision_redone == 1
    assert reuse(tmp_path, table_of(rows), factory).reused_rows == 2


def test_a_damaged_shard_is_computed_again(tmp_path):
    table, factory = table_of(ROWS), DoubleFactory(VECTOR)
    first = reuse(tmp_path, table, factory)
    shard = sorted((tmp_path / store_name(factory, LEASE)).glob("shard-*"))[0]
    (shard / "vector.npy").write_bytes(b"not an array")
    again = reuse(tmp_path, table, factory)
    assert 0 < again.reused_rows < len(ROWS)
    assert_same(again.outputs, first.outputs)


@pytest.mark.parametrize("name", ["keys.npy", "vector.npy", "shard.json"])
@pytest.mark.parametrize("damage", ["empty", "gone", "one bit", "facts of another kind"])
def test_whatever_happened_to_a_file_its_rows_are_computed_again(tmp_path, name, damage):
    table, factory = table_of(ROWS), DoubleFactory(VECTOR)
    first = reuse(tmp_path, table, factory)
    path = sorted((tmp_path / store_name(factory, LEASE)).glob("shard-*"))[0] / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40
    damaged = {"empty": b"", "one bit": bytes(content), "facts of another kind": b"{}"}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    for reused in (range(1, len(ROWS)), range(len(ROWS) - 1, len(ROWS) + 1)):  # computed again, and sound from then on
        again = reuse(tmp_path, table, factory)
        assert_same(again.outputs, first.outputs)
        assert again.reused_rows in reused


def test_rows_of_another_table_stay(tmp_path):
    factory = DoubleFactory(VECTOR)
    first, second = table_of(ROWS[:2]), table_of(ROWS[2:])
    reuse(tmp_path, first, factory)
    reuse(tmp_path, second, factory)
    assert reuse(tmp_path, first, factory).reused_rows == 2


def make_old(path: Path) -> None:
    month_ago = time.time() - 31 * 86_400
    os.utime(path, (month_ago, month_ago))


def test_what_nobody_reads_for_a_month_is_removed(tmp_path):
    old, new = DoubleFactory(VECTOR, identity="old"), DoubleFactory(VECTOR, identity="new")
    for factory in (old, new):
        reuse(tmp_path, table_of(ROWS), factory, shard_tokens=4)
    for facts in tmp_path.glob("*/shard-*/shard.json"):
        make_old(facts)
    make_old(tmp_path / store_name(old, LEASE) / ".lock")
    result = reuse(tmp_path, table_of(ROWS[4:]), new)
    assert result.reused_rows == 1
    assert not (tmp_path / store_name(old, LEASE)).exists()
    assert len(list((tmp_path / store_name(new, LEASE)).glob("shard-*"))) == 1


def test_large_outputs_are_mapped_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_IN_MEMORY_BYTES", 0)
    factory = DoubleFactory(VECTOR)
    result = reuse(tmp_path, table_of(ROWS), factory)
    assert isinstance(result.outputs["vector"], np.memmap)
    assert_same(result.outputs, run_here(table_of(ROWS), factory).outputs)
    assert not list(tmp_path.rglob(".reading-*"))


def test_keys_cannot_be_compared_between_stores(tmp_path):
    one, other = secret_of(tmp_path / "a"), secret_of(tmp_path / "b")
    assert secret_of(tmp_path / "a") == one != other
    assert stat.S_IMODE((tmp_path / "a" / "secret").stat().st_mode) == 0o600
    table = table_of(ROWS)
    assert not (row_keys(table, one) == row_keys(table, other)).any()
    keys = row_keys(table, one)
    assert (keys[0] == keys[3]).all()
    assert len(np.unique(keys, axis=0)) == 4


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), tokens=st.integers(1, 120), done=st.integers(0, 9)
)
def test_the_rest_is_cut_as_it_would_have_been(lengths, tokens, done):
    counts = np.array(lengths, np.int64)
    whole = list(shards(counts, np.arange(len(counts)), tokens))
    assert sorted(np.concatenate(whole).tolist()) == list(range(len(counts)))
    assert all(counts[part].sum() >= tokens for part in whole[:-1])
    assert all(counts[part[:-1]].sum() < tokens for part in whole)
    left = np.sort(np.concatenate(whole[done:])) if whole[done:] else np.empty(0, np.int64)
    assert [part.tolist() for part in shards(counts, left, tokens)] == [part.tolist() for part in whole[done:]]


RUN = """
import sys, time
from pathlib import Path
from ensemble_assets_tests.compute.running import test_reuse
from ensemble_assets_tests.compute.running.doubles import DoubleForward
inner = DoubleForward.__call__
def slow(self, table, batch):
    time.sleep(0.03)
    return inner(self, table, batch)
DoubleForward.__call__ = slow
test_reuse.reuse(Path(sys.argv[1]), test_reuse.killed_table(), test_reuse.DoubleFactory(test_reuse.VECTOR), 40)
"""


def killed_table():
    return table_of([[5 + a, 5 + b, 5 + (a * b) % 20][: 1 + (a + b) % 3] for a in range(14) for b in range(14)])


@pytest.mark.parametrize("after_shards", [1, 3])
def test_a_killed_run_loses_at_most_the_shard_it_was_at(tmp_path, after_shards):
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/shard-*"))) < after_shards and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sealed = sum(len(np.load(path / "keys.npy")) for path in tmp_path.glob("*/shard-*"))
    factory = DoubleFactory(VECTOR)
    resumed = reuse(tmp_path, killed_table(), factory, shard_tokens=40)
    whole = reuse(tmp_path.with_name(tmp_path.name + "-whole"), killed_table(), DoubleFactory(VECTOR), shard_tokens=40)
    assert resumed.outputs["vector"].tobytes() == whole.outputs["vector"].tobytes()
    distinct = whole.distinct_rows
    assert 0 < sealed < distinct
    assert sum(batch.size for batch in factory.journal.batches) == distinct - sealed


def test_two_runs_at_once_share_a_store(tmp_path):
    factory = DoubleFactory(VECTOR)
    with open_store(tmp_path / store_name(factory, LEASE), VECTOR) as opened:
        opened.add(np.ones((1, 2), np.uint64), {"vector": np.ones((1, 4), np.float32)}, "fp32")
        with pytest.raises(store.Timeout), store.FileLock(tmp_path / store_name(factory, LEASE) / ".lock", 0):
            pass


def test_a_factory_without_another_precision_is_kept_too(tmp_path):
    class Plain(PlainFactory):
        outputs = VECTOR
        identity = "plain"
        loads = 0

        def load(self, device):
            self.loads += 1
            return replace(DoubleFactory(VECTOR)).load(device)

    plain = Plain()
    reuse(tmp_path, table_of(ROWS), plain, shard_tokens=1)
    assert plain.loads == 1
