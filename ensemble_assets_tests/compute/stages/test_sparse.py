"""The sparse stage: live vectors, stand-ins in the same index space, a source for every chunk, opt-out."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import LeaseTimeoutError, SettingsError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.models.spec import FolderSource
from ensemble_assets_tests.compute.running.doubles import IDS, NO_FAULTS, Journal, faults, model_folder, sparse_maker

CHUNKS = pl.Series(["storm flood storm", "wind", "engine piston valve", "rain wind rain"])
QUERIES = pl.Series(["piston engine", "wind"])


def metadata(*terms: str) -> str:
    return json.dumps({"sparse_features": {"term_weights": [{"term": term, "weight": 0.5} for term in terms]}})


METADATA = pl.Series([metadata("storm"), metadata("wind"), metadata("engine", "piston"), None])


def encode(tmp_path, planted=NO_FAULTS, events=None, specs=None, journal=None, **options):
    context = ComputeContext(events=events or EventLog())
    specs = [model_folder(tmp_path / "m", "sparse")] if specs is None else specs
    maker = sparse_maker(planted, journal)
    return encode_sparse(CHUNKS, METADATA, QUERIES, specs, context, make_factory=maker, **options)


def words_of(result, row: int, side: str = "chunks") -> set[str]:
    return {result.words[index] for index in getattr(result, side).row(row).indices}


def best_chunk(result, query: int) -> int:
    """The chunk with the highest dot product."""
    asked = dict(zip(*(part.tolist() for part in result.queries.row(query)), strict=True))
    scores = [
        sum(
            asked.get(index, 0.0) * value
            for index, value in zip(*(part.tolist() for part in result.chunks.row(row)), strict=True)
        )
        for row in range(len(result.chunks))
    ]
    return int(np.argmax(scores))


def test_live_vectors_of_chunks_and_queries(tmp_path):
    result = encode(tmp_path)
    assert words_of(result, 0) == {"storm", "flood"}
    assert words_of(result, 0, "queries") == {"piston", "engine"}
    assert result.source.tolist() == [1, 1, 1, 1]
    assert result.query_source.tolist() == [1, 1]
    assert [best_chunk(result, query) for query in (0, 1)] == [2, 1]
    record = result.record
    assert (record.status, record.fallback_count, record.fallback_reasons) == ("completed", 0, {})
    assert record.coverage_ratio == 1.0
    assert len(result.words) == record.dimension == len(IDS)


def test_a_failing_chunk_falls_back_to_its_metadata_and_stays_findable(tmp_path):
    events = EventLog()
    result = encode(tmp_path, faults(raises="valve"), events)
    assert result.source.tolist() == [1, 1, 2, 1]
    assert words_of(result, 2) == {"engine", "piston"}
    assert best_chunk(result, 0) == 2
    live = [np.linalg.norm(result.chunks.row(row).values) for row in (0, 1, 3)]
    assert np.linalg.norm(result.chunks.row(2).values) == pytest.approx(np.median(live), rel=1e-5)
    record = result.record
    assert (record.status, record.fallback_count, record.fallback_reasons) == ("partial", 1, {"ValueError": 1})
    assert [event.facts for event in events.named("fallback.sparse")] == [
        {"model": "m", "reason": "ValueError", "source": "metadata", "count": 1}
    ]


def test_a_failing_chunk_without_metadata_has_no_vector_and_is_counted(tmp_path):
    result = encode(tmp_path, faults(raises="rain"))
    assert result.source.tolist() == [1, 1, 1, 0]
    assert len(result.chunks.row(3).indices) == 0
    record = result.record
    assert (record.vectors_total, record.vectors_live, record.vectors_available) == (4, 3, 3)
    assert record.coverage_ratio == 0.75
    assert result.record.fallback_count == 1


def test_fallbacks_are_reported_by_what_stands_in(tmp_path):
    """Chunks without metadata terms are told from those that their terms stand in for."""
    events = EventLog()
    result = encode(tmp_path, faults(raises="[CLS]"), events)
    reported = [(event.facts["source"], event.facts["count"]) for event in events.named("fallback.sparse")]
    assert reported == [("metadata", 3), ("none", 1)]
    assert result.source.tolist() == [2, 2, 2, 0]
    assert result.record.fallback_count == 4


def test_not_finite_and_too_large_chunks_fall_back_with_their_reason(tmp_path):
    not_finite = encode(tmp_path, faults(nan="storm", nan_in_fp32_too=True))
    assert not_finite.record.fallback_reasons == {"not_finite": 1}
    assert words_of(not_finite, 0) == {"storm"}
    too_large = encode(tmp_path, faults(most_tokens=4))
    assert too_large.record.fallback_reasons == {"out_of_memory": 3}
    assert too_large.source.tolist() == [2, 1, 2, 0]


def test_a_failing_query_falls_back_to_its_own_words(tmp_path):
    result = encode(tmp_path, faults(raises="piston"))
    assert result.query_source.tolist() == [2, 1]
    assert words_of(result, 0, "queries") == {"piston", "engine"}
    assert result.record.queries_live == 1
    assert best_chunk(result, 0) == 2


def test_a_model_that_fails_on_everything_lets_all_chunks_fall_back(tmp_path):
    result = encode(tmp_path, faults(raises_after=0))
    assert result.source.tolist() == [2, 2, 2, 0]
    assert result.record.status == "fallback"
    assert result.record.models == ()
    assert result.record.fallback_reasons == {"ValueError": 4}
    assert result.index_space.startswith("vocabulary-")
    assert [best_chunk(result, query) for query in (0, 1)] == [2, 1]


def test_a_model_whose_weights_are_missing_leaves_its_vocabulary(tmp_path):
    from ensemble_assets.compute.backends.choice import sparse_factory

    spec = model_folder(tmp_path / "m", "sparse")  # its weights are no weights
    result = encode_sparse(CHUNKS, METADATA, QUERIES, [spec], ComputeContext(), make_factory=sparse_factory)
    assert result.record.fallback_reasons == {"model_unavailable": 4}
    assert result.record.unusable["m"] == "model_unavailable"
    assert words_of(result, 2) == {"engine", "piston"}


def test_without_any_file_the_collections_terms_are_the_space(tmp_path):
    spec = model_folder(tmp_path / "m", "sparse", source=FolderSource(str(tmp_path / "gone")))
    result = encode(tmp_path, specs=[spec])
    assert result.words == ("engine", "piston", "storm", "wind")
    assert result.index_space == "terms-of-this-collection"
    assert [best_chunk(result, query) for query in (0, 1)] == [2, 1]
    assert result.record.vectors_from_metadata == 3


def test_the_first_model_that_runs_makes_all_vectors(tmp_path):
    gone = model_folder(tmp_path / "gone", "sparse", source=FolderSource(str(tmp_path / "nowhere")))
    result = encode(tmp_path, specs=[gone, model_folder(tmp_path / "here", "sparse")])
    assert [model.slug for model in result.record.models] == ["here"]
    assert result.record.model == "here"
    assert result.record.unusable["gone"] == "model_unavailable"
    assert (result.record.status, result.source.tolist()) == ("completed", [1, 1, 1, 1])


def test_a_lease_that_is_not_granted_is_a_fallback(tmp_path):
    @contextmanager
    def never(*, model, stage):
        raise LeaseTimeoutError("held by pid 1")
        yield

    spec = model_folder(tmp_path / "m", "sparse")
    result = encode_sparse(CHUNKS, METADATA, QUERIES, [spec], ComputeContext(lease=never), make_factory=sparse_maker())
    assert result.record.fallback_reasons == {"lease_timeout": 4}


def test_a_full_disk_is_an_error_and_no_fallback(tmp_path):
    @contextmanager
    def full(*, model, stage):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    spec = model_folder(tmp_path / "m", "sparse")
    with pytest.raises(OSError, match="No space left"):
        encode_sparse(CHUNKS, METADATA, QUERIES, [spec], ComputeContext(lease=full), make_factory=sparse_maker())


def test_chunks_are_pruned_and_queries_are_not(tmp_path):
    journal = Journal()
    result = encode(tmp_path, top_k=1, journal=journal)
    assert result.chunks.counts.tolist() == [1, 1, 1, 1]
    assert words_of(result, 0) == {"storm"}
    assert result.queries.counts.tolist() == [2, 1]
    assert result.record.queries_pruned == 0
    assert len(journal.loaded) == 2


def test_queries_that_cannot_be_run_again_keep_their_pruned_vector_and_are_counted(tmp_path):
    # four chunks and a query that is not one of them; the next row is the second run's
    result = encode(tmp_path, faults(raises_after=5), journal=Journal(), top_k=1)
    assert result.queries.counts.tolist() == [1, 1]
    assert result.record.queries_pruned == 1
    assert result.record.status == "completed"


def test_a_stage_that_is_off_is_an_explicit_empty_result(tmp_path):
    result = encode(tmp_path, specs=[], enabled=False)
    assert (len(result.chunks), len(result.queries)) == (4, 2)
    assert result.source.tolist() == [0, 0, 0, 0]
    assert (result.record.status, result.record.fallback_count) == ("feature_disabled", 0)


def test_no_model_to_try_is_a_settings_error(tmp_path):
    with pytest.raises(SettingsError, match=r"models\.sparse"):
        encode(tmp_path, specs=[])


def test_wrong_settings_are_an_error_and_no_fallback(tmp_path):
    with pytest.raises(SettingsError, match="max_tokens is 2"):
        encode(tmp_path, specs=[model_folder(tmp_path / "m", "sparse", max_tokens=2)])


def test_an_empty_collection_is_completed(tmp_path):
    none = pl.Series([], dtype=pl.String)
    spec = model_folder(tmp_path / "m", "sparse")
    result = encode_sparse(none, none, none, [spec], ComputeContext(), make_factory=sparse_maker())
    assert (len(result.chunks), result.record.status, result.record.coverage_ratio) == (0, "completed", 1.0)


def test_nothing_of_a_text_is_in_records_and_events(tmp_path):
    events = EventLog()
    result = encode(tmp_path, faults(raises="valve", message="engine piston valve"), events)
    told = json.dumps(result.record.as_json()) + repr(events.events)
    assert not [word for word in ("storm", "engine", "piston", "valve", "rain") if word in told]
