"""The dense stage: prefixes, several models one after another, errors that name the chunk, companions that may drop."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import (
    DeviceError,
    LeaseTimeoutError,
    MemoryBudgetError,
    ModelUnavailableError,
    StageError,
)
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.stages.context import ComputeContext, reason_of
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.tokens import token_cache
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.spec import FolderSource
from ensemble_assets_tests.compute.running.doubles import (
    VECTOR,
    Journal,
    dense_maker,
    expected_outputs,
    faults,
    model_folder,
)
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

CHUNKS = pl.Series(["storm flood", "wind", "engine piston valve", "wind"])
QUERIES = pl.Series(["storm", "rain wind"])


def expected(spec, text: str, prefix: str = "") -> np.ndarray:
    known = load_vocabulary(locate(spec))
    ids = known.tokenizer.encode(prefix + text).ids[: spec.max_tokens]
    return expected_outputs(VECTOR, ids)["vector"]


def test_every_text_gets_its_vector_with_its_sides_prefix(tmp_path):
    spec = model_folder(tmp_path / "m", query_prefix="query ", document_prefix="alpha ")
    result = encode_dense(CHUNKS, QUERIES, [spec], ComputeContext(), make_factory=dense_maker())
    (model,) = result.models
    np.testing.assert_array_equal(model.chunks, [expected(spec, text, "alpha ") for text in CHUNKS])
    np.testing.assert_array_equal(model.queries, [expected(spec, text, "query ") for text in QUERIES])
    assert result.record.status == "completed"
    assert (result.record.items, result.record.fallback_count) == (6, 0)
    assert result.record.queries == 2


def test_truncated_chunks_and_dropped_tokens_are_counted(tmp_path):
    spec = model_folder(tmp_path / "m", max_tokens=4)
    result = encode_dense(CHUNKS, QUERIES, [spec], ComputeContext(), make_factory=dense_maker())
    assert result.models[0].truncated.tolist() == [False, False, True, False]
    assert (result.record.truncated, result.record.tokens_dropped) == (1, 1)


def test_models_run_one_after_another_each_under_its_own_lease(tmp_path):
    log, journal = [], Journal()

    @contextmanager
    def lease(*, model, stage):
        log.append(("taken", model, stage))
        yield Lease((CpuDevice(),))
        log.append(("back", model, len(journal.batches)))

    specs = [model_folder(tmp_path / name) for name in ("one", "two")]
    encode_dense(CHUNKS, QUERIES, specs, ComputeContext(lease=lease), make_factory=dense_maker(journal=journal))
    assert [entry[:2] for entry in log] == [("taken", "one"), ("back", "one"), ("taken", "two"), ("back", "two")]
    assert log[1][2] == 1
    assert {entry[2] for entry in log if entry[0] == "taken"} == {"dense"}


def test_models_that_share_a_vocabulary_tokenise_once(tmp_path, monkeypatch):
    specs, made = [model_folder(tmp_path / name) for name in ("one", "two")], []
    monkeypatch.setattr(token_cache, "tokenise_bodies", lambda *args: made.append([*args[0]]) or tokenise_bodies(*args))
    encode_dense(CHUNKS, QUERIES, specs, ComputeContext(), make_factory=dense_maker())
    assert made == [CHUNKS.to_list(), QUERIES.to_list()]


def test_a_missing_primary_model_is_an_error(tmp_path):
    spec = model_folder(tmp_path / "m", source=FolderSource(str(tmp_path / "gone")))
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        encode_dense(CHUNKS, QUERIES, [spec], ComputeContext(), make_factory=dense_maker())


def test_a_missing_companion_is_dropped_with_its_reason(tmp_path):
    gone = model_folder(tmp_path / "gone", source=FolderSource(str(tmp_path / "nowhere")))
    specs = [model_folder(tmp_path / "one"), gone, model_folder(tmp_path / "two")]
    events = EventLog()
    result = encode_dense(CHUNKS, QUERIES, specs, ComputeContext(events=events), make_factory=dense_maker())
    assert [model.spec.slug for model in result.models] == ["one", "two"]
    assert result.dropped == {"gone": "model_unavailable"}
    assert (result.record.status, result.record.fallback_reasons) == ("partial", {"model_unavailable": 1})
    assert [event.facts["model"] for event in events.named("fallback.dense")] == ["gone"]


def test_a_companion_that_fails_on_a_text_is_dropped_and_the_primary_is_not(tmp_path):
    specs = [model_folder(tmp_path / name) for name in ("one", "two")]

    def make(spec, files, runtime):
        return dense_maker(faults(raises="piston") if spec.slug == "two" else faults())(spec, files, runtime)

    result = encode_dense(CHUNKS, QUERIES, specs, ComputeContext(), make_factory=make)
    assert result.dropped == {"two": "stage_failed"}


def test_a_chunk_without_vector_is_an_error_that_names_it_and_its_length(tmp_path):
    spec = model_folder(tmp_path / "m")
    ids = pl.Series(["c0", "c1", "c2", "c3"])
    with pytest.raises(StageError, match=r"for 1 texts, the first is chunk c2 of 5 tokens \(ValueError\)") as caught:
        encode_dense(
            CHUNKS, QUERIES, [spec], ComputeContext(), chunk_ids=ids, make_factory=dense_maker(faults(raises="piston"))
        )
    assert "piston" not in str(caught.value)


def test_a_query_without_vector_is_named_by_its_number(tmp_path):
    with pytest.raises(StageError, match="the first is query 1 of 4 tokens"):
        encode_dense(
            CHUNKS,
            QUERIES,
            [model_folder(tmp_path / "m")],
            ComputeContext(),
            make_factory=dense_maker(faults(raises="rain")),
        )


def test_a_chunk_that_does_not_fit_says_what_to_change(tmp_path):
    with pytest.raises(MemoryBudgetError, match=r"chunk 2 of 5 tokens \(out_of_memory\)\. Raise the memory ceiling"):
        encode_dense(
            CHUNKS,
            QUERIES,
            [model_folder(tmp_path / "m")],
            ComputeContext(),
            make_factory=dense_maker(faults(most_tokens=4)),
        )


def test_weights_that_do_not_fit_say_what_to_change(tmp_path):
    class Huge(PlainFactory):
        outputs = VECTOR
        identity = "huge"

        def load(self, device):
            raise DeviceOutOfMemoryError("no")

    with pytest.raises(MemoryBudgetError, match="the weights of double do not fit"):
        encode_dense(CHUNKS, QUERIES, [model_folder(tmp_path / "m")], ComputeContext(), make_factory=lambda *_: Huge())


def test_vectors_that_are_not_finite_are_redone_and_counted(tmp_path):
    spec = model_folder(tmp_path / "m")
    maker = dense_maker(faults(nan="piston"), precision="fp16")
    result = encode_dense(CHUNKS, QUERIES, [spec], ComputeContext(), make_factory=maker)
    assert np.isfinite(result.models[0].chunks).all()
    assert (result.record.precision_redone, result.record.precision) == (1, "fp16")


def test_no_chunks_and_no_queries_give_empty_arrays(tmp_path):
    none = pl.Series([], dtype=pl.String)
    result = encode_dense(none, none, [model_folder(tmp_path / "m")], ComputeContext(), make_factory=dense_maker())
    assert result.models[0].chunks.shape == result.models[0].queries.shape == (0, 8)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ModelUnavailableError("x"), "model_unavailable"),
        (DeviceOutOfMemoryError("x"), "out_of_memory"),
        (MemoryBudgetError("x"), "out_of_memory"),
        (LeaseTimeoutError("x"), "lease_timeout"),
        (DeviceError("x"), "device_failed"),
        (ModelFailedError("m", "KeyError", 1, 1), "KeyError"),
        (StageError("x"), "stage_failed"),
        (ZeroDivisionError("secret"), "ZeroDivisionError"),
    ],
)
def test_reasons_are_fixed_words(error, word):
    assert reason_of(error) == word
