"""An input in slices is the input as a whole, and batches begin before the last text is tokenised."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import StageError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.running.equal_rows import growing_slices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner, in_process_runner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.stages import encoder_input as module
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.encoder_input import EncoderTexts
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.compute.tokens import token_cache
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.models.model_files import locate
from ensemble_assets_tests.compute.running.doubles import (
    VECTOR,
    DoubleFactory,
    dense_maker,
    faults,
    model_folder,
    sparse_maker,
)
from ensemble_assets_tests.compute.running.worker_cases import ActingLog, fixed_batches, simulated

WORDS = ["alpha beta", "storm", "storm flood wind rain", "engine piston valve", "nan", "broken", "x y z " * 4]
TEXTS = st.lists(st.sampled_from(["", *WORDS]), max_size=14)
CHUNKS, QUERIES = pl.Series(WORDS[:4]), pl.Series(["query storm", "alpha beta"])


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "m")


def texts_of(chunks: list[str], queries: list[str], factory: DoubleFactory, cache: TokenCache | None = None):
    made = (pl.Series(values, dtype=pl.String) for values in (chunks, queries))
    return EncoderTexts(*made, factory, locate(factory.spec), cache or TokenCache())


def run(table, factory, runner):
    return runner(table, factory, lease=Lease((CpuDevice(),)), events=EventLog())


@given(chunks=TEXTS, queries=TEXTS, slice_bytes=st.integers(1, 60), again=st.booleans())
def test_the_slices_are_the_rows_of_the_table_each_once(spec, chunks, queries, slice_bytes, again):
    texts = texts_of(chunks, queries, DoubleFactory(VECTOR, spec=spec))
    whole = texts_of(chunks, queries, texts.factory).input.table
    if again:  # from ids that are kept already
        assert len(texts.input.table) == len(whole)
    rows: dict[int, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE_BYTES", slice_bytes)
        with texts.tables(streamed=True) as tables:
            slices = [(np.arange(len(whole)), tables)] if hasattr(tables, "ids") else list(tables)
    for numbers, table in slices:
        assert len(numbers) == len(table)
        for at, number in enumerate(numbers.tolist()):
            assert number not in rows
            rows[number] = table.ids[table.offsets[at] : table.offsets[at + 1]].tolist()
    assert rows == {n: whole.ids[whole.offsets[n] : whole.offsets[n + 1]].tolist() for n in range(len(whole))}
    with texts.tables(streamed=False) as table:  # the column was kept as if it had been tokenised at once
        np.testing.assert_array_equal(table.ids, whole.ids)
        np.testing.assert_array_equal(table.offsets, whole.offsets)


@given(weights=st.lists(st.integers(0, 20), max_size=60), first=st.integers(1, 60))
def test_slices_grow_and_hold_every_row_once_heaviest_first(weights, first):
    slices = growing_slices(np.array(weights, np.int64), first)
    rows = [row for some in slices for row in some.tolist()]
    assert sorted(rows) == list(range(len(weights)))
    assert [weights[row] for row in rows] == sorted(weights, reverse=True)
    begun = 0
    for some in slices:
        of_slice = [weights[row] for row in some]
        assert sum(of_slice[:-1]) < begun + first, "without its last row, no heavier than all before it and the first"
        begun += sum(of_slice)


def test_slices_of_equal_rows_double():
    assert [len(rows) for rows in growing_slices(np.ones(40, np.int64), 4)] == [4, 8, 16, 12]


@given(chunks=TEXTS, queries=TEXTS, slice_bytes=st.integers(1, 60), stored=st.booleans())
def test_running_slices_gives_what_running_the_table_gives(
    tmp_path_factory, spec, chunks, queries, slice_bytes, stored
):
    """Equal rows in different slices, rows that fail and rows that are redone in fp32 among them."""
    results, computed = [], []
    for streamed in (False, True):
        folder = tmp_path_factory.mktemp("rows") if stored else None
        runner = replace(in_process_runner(64), folder=folder, shard_tokens=20)
        factory = DoubleFactory(VECTOR, faults(raises="broken", nan="nan"), spec=spec)
        texts = texts_of(chunks, queries, factory)
        if stored:  # an earlier run has done some rows
            run(texts_of(chunks[:3], [], factory).input.table, factory, runner)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SLICE_BYTES", slice_bytes)
            with texts.tables(streamed=streamed) as tables:
                results.append(run(tables, factory, runner))
        computed.append(sorted(factory.journal.tokens))
    whole, sliced = results
    np.testing.assert_array_equal(sliced.outputs["vector"], whole.outputs["vector"])
    for name in ("failed_rows", "tokens", "distinct_rows", "reused_rows", "precision_redone", "precision"):
        assert getattr(sliced, name) == getattr(whole, name), name
    assert computed[0] == computed[1], "no row is computed twice"


@pytest.fixture
def context(tmp_path):
    """Two simulated devices, one worker each."""
    log, devices = ActingLog(), simulated(2)
    settings = WorkerSettings(fixed_batches(16), work_folder=tmp_path / "work")
    lease = partial(lease_devices, lock_folder=tmp_path / "locks", events=log, devices=devices, timeout=30.0)
    return ComputeContext(lease=lease, runner=TableRunner(LocalRunner(settings, devices)), events=log)


def encode(stage: str, folder, context: ComputeContext):
    if stage == "dense":
        return encode_dense(CHUNKS, QUERIES, [model_folder(folder)], context, make_factory=dense_maker())
    metadata = pl.Series([None] * len(CHUNKS), dtype=pl.String)
    return encode_sparse(
        CHUNKS, metadata, QUERIES, [model_folder(folder, "sparse")], context, make_factory=sparse_maker()
    )


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_the_first_batch_is_done_before_the_last_text_is_tokenised(tmp_path, context, monkeypatch, stage):
    begun, real, tokenised = threading.Event(), token_cache.tokenise_bodies, []
    context.events.act = lambda log, name, facts: begun.set() if name == "batch.done" else None
    expected = encode(stage, tmp_path / "here", ComputeContext())

    def tokenise(texts, *arguments, **words):
        tokenised.append(list(texts))
        if "storm" in texts:  # the shortest chunk is in the last slice
            assert begun.wait(60.0), "the last text is tokenised only when a batch is done"
        return real(texts, *arguments, **words)

    monkeypatch.setattr(module, "SLICE_BYTES", 15)
    monkeypatch.setattr(token_cache, "tokenise_bodies", tokenise)
    result = encode(stage, tmp_path / "m", context)
    assert len(tokenised) > 2
    assert tokenised[-1][-1] == "storm"
    if stage == "dense":
        np.testing.assert_array_equal(result.models[0].chunks, expected.models[0].chunks)
        np.testing.assert_array_equal(result.models[0].queries, expected.models[0].queries)
    else:
        np.testing.assert_array_equal(result.chunks.values, expected.chunks.values)
        np.testing.assert_array_equal(result.queries.values, expected.queries.values)


def test_a_process_that_computes_itself_tokenises_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLICE_BYTES", 1)
    texts = texts_of(WORDS, [], DoubleFactory(VECTOR, spec=model_folder(tmp_path / "m")))
    assert not ComputeContext().in_workers
    with texts.tables(streamed=False) as table:
        assert len(table) == len(WORDS)


def test_windows_and_a_models_own_preprocessing_make_one_table(tmp_path, monkeypatch):
    """A chunk's first row depends on the windows of all chunks before it."""
    monkeypatch.setattr(module, "SLICE_BYTES", 1)
    spec = model_folder(tmp_path / "m", windows=2, max_tokens=6)
    texts = texts_of(WORDS, [], DoubleFactory(VECTOR, spec=spec))
    with texts.tables(streamed=True) as table:
        assert len(table) > len(WORDS)


def test_a_text_on_which_the_tokeniser_fails_is_named_by_its_row_in_the_column(spec, monkeypatch):
    real = token_cache.tokenise_bodies

    def tokenise(texts, *arguments):
        for row, text in enumerate(texts):
            if text == "storm":
                raise StageError(f"the tokenizer failed on text {row} of its list")
        return real(texts, *arguments)

    monkeypatch.setattr(module, "SLICE_BYTES", 1)
    monkeypatch.setattr(token_cache, "tokenise_bodies", tokenise)
    texts = texts_of(["alpha", "storm", "storm flood"], [], DoubleFactory(VECTOR, spec=spec))
    with texts.tables(streamed=True) as tables, pytest.raises(StageError, match="text 1"):
        list(tables)
