"""Rows that are, byte by byte, as the contract states them are known, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stated_records import StatedRecords
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export import strategies
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, live_sparse, unit_rows

MANIFEST = {"feature_toggles": {"enable_sparse": True}, "schema_version": "v4.1"}
VECTOR = {"alpha": 1.5, "beta": 1e-7, 'q"uo\\te é': 0.25}
FEATURES = {"sparse_features": {"term_weights": [{"term": "Alpha", "weight": 0.5}], "total_terms": 9}}
RECORDS = ("line", "item", "text_item", "sparse_line")


def with_stage(chunks: list[Chunk], rows: list[dict[str, float]], sources: list[int], **changes: Any) -> BundleInputs:
    return bundle_of(chunks, sparse=replace(live_sparse(rows, sources), **changes))


def written(folder: Path, inputs: BundleInputs) -> BundleInputs:
    folder.mkdir(exist_ok=True)
    write_v40(folder, inputs)
    toggles = {"enable_sparse": inputs.sparse is not None}
    (folder / "processing_summary.json").write_text(json.dumps({**MANIFEST, "feature_toggles": toggles}))
    return inputs


def rows_with_verdicts(folder: Path, inputs: BundleInputs) -> list[tuple[Row, bool]]:
    walk = Walk(open_bundle(folder), inputs)
    stated = StatedRecords(walk)
    return [(row, stated.metadata_of(row) is not None) for row in walk]


TWICE = [Chunk("one", FEATURES), Chunk("two", FEATURES)]
CASES = {
    "no sparse vector": bundle_of([Chunk("one"), Chunk("two")]),
    "the echo of version 4.0": bundle_of(TWICE),
    "two dense models": bundle_of(TWICE, dense("mini", unit_rows(2, 4)), dense("Ä-1.5", unit_rows(2, 3))),
    "numbers that are not finite": bundle_of([Chunk(text, {"n": math.inf, "m": None}) for text in ("one", "two")]),
    "numbers with exponents": bundle_of([Chunk(text, {"n": [1e-5, 1e16, 0.00001234]}) for text in ("one", "two")]),
    "live vectors": with_stage(TWICE, [VECTOR, {"beta": 0.5}], [1, 1]),
    "live vectors of length 1": with_stage(TWICE, [VECTOR, {"beta": 0.5}], [1, 1], unit=True),
    "live vectors without an echo": with_stage([Chunk("one"), Chunk("two")], [VECTOR, VECTOR], [1, 1]),
    "vectors of metadata terms": with_stage(TWICE, [VECTOR, VECTOR], [2, 2]),
    "an echo without a vector": with_stage(TWICE, [{}, {}], [1, 1]),
    "nothing in a live bundle": with_stage([Chunk("one"), Chunk("two")], [{}, {}], [0, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_all_but_the_first_row_of_a_kind_are_known(case: str, tmp_path: Path) -> None:
    assert [known for _, known in rows_with_verdicts(tmp_path, written(tmp_path, CASES[case]))] == [False, True]


def test_null_is_not_taken_for_a_number_that_is_not_finite(tmp_path: Path) -> None:
    inputs = written(tmp_path, CASES["numbers that are not finite"])
    walk = Walk(open_bundle(tmp_path), inputs)
    stated = StatedRecords(walk)
    first, second = walk
    assert stated.metadata_of(first) is None
    assert second.item is not None
    assert second.item.count(b"Infinity") == 1
    assert stated.metadata_of(replace(second, item=second.item.replace(b"Infinity", b"null"))) is None
    assert stated.metadata_of(second) is not None


@pytest.mark.parametrize("case", ["the echo of version 4.0", "two dense models", "live vectors of length 1"])
@pytest.mark.parametrize("record", RECORDS)
def test_a_row_with_any_other_byte_is_judged_whole(case: str, record: str, tmp_path: Path) -> None:
    inputs = written(tmp_path, CASES[case])
    walk = Walk(open_bundle(tmp_path), inputs)
    stated = StatedRecords(walk)
    first, second = walk
    assert stated.metadata_of(first) is None
    text: bytes = getattr(second, record)
    assert stated.metadata_of(second) is not None
    for place in range(len(text)):
        other = bytes([text[place] ^ 1])
        assert stated.metadata_of(replace(second, **{record: text[:place] + other + text[place + 1 :]})) is None
    for changed in (text + b" ", text[:-1], b"", None):
        assert stated.metadata_of(replace(second, **{record: changed})) is None


def test_a_row_is_known_only_as_the_row_of_its_chunk(tmp_path: Path) -> None:
    inputs = written(tmp_path, CASES["no sparse vector"])
    walk = Walk(open_bundle(tmp_path), inputs)
    stated = StatedRecords(walk)
    first, second = walk
    for row in (first, replace(second, chunk=None), replace(second, chunk=first.chunk), replace(second, number=0)):
        assert stated.metadata_of(row) is None
    without_chunks = StatedRecords(Walk(open_bundle(tmp_path)))
    assert without_chunks.metadata_of(second) is None


def test_a_text_that_looks_like_the_place_of_a_list_is_judged_whole(tmp_path: Path) -> None:
    odd = [Chunk(text, {"own": "\0"}) for text in ("one", "two")]
    inputs = written(tmp_path, with_stage(odd, [VECTOR, VECTOR], [1, 1]))
    assert [known for _, known in rows_with_verdicts(tmp_path, inputs)] == [False, False]
    assert not any(result.failed for result in judge_bundle(open_bundle(tmp_path), Limits(), inputs))


def test_every_kind_is_judged_whole_once(tmp_path: Path) -> None:
    own: list[dict[str, Any]] = [{"page": 1}, {"page": 2}, {"page": "3"}, {"page": 4, "x": 1}, {"x": 1, "page": 5}, {}]
    inputs = written(tmp_path, bundle_of([Chunk(f"text {n}", metadata) for n, metadata in enumerate(own)]))
    known = [known for _, known in rows_with_verdicts(tmp_path, inputs)]
    assert known == [False, True, False, False, False, False]


def verdicts(folder: Path, inputs: BundleInputs, queries: tuple[Query, ...]) -> list[GateResult]:
    return [
        replace(result, numbers={**result.numbers, "bytes_searched": 0})
        for result in judge_bundle(open_bundle(folder), Limits(), inputs, queries)
    ]


@given(
    st.lists(strategies.metadata(), min_size=1, max_size=3),
    st.lists(st.sampled_from(["where is the violin number 3", "alpha beta gamma delta"]), min_size=5, max_size=5),
    st.sampled_from(["off", "live", "unit"]),
    st.integers(0, 99),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_gates_say_what_they_say_of_rows_that_are_judged_whole(
    own: list[dict[str, Any]], texts: list[str], sparse: str, seed: int
) -> None:
    chunks = [Chunk(texts[(number + again) % 5], metadata) for again in (0, 1) for number, metadata in enumerate(own)]
    draw = np.random.default_rng(seed)
    vectors: list[dict[str, float]] = [
        {word: float(draw.lognormal(0, 9)) for word in VECTOR if draw.random() < 0.7} for _ in chunks
    ]
    sources = [int(bool(vector)) for vector in vectors]
    inputs = bundle_of(chunks) if sparse == "off" else with_stage(chunks, vectors, sources, unit=sparse == "unit")
    queries = (Query("q1", "where is the violin number 3"), Query("q2", "who is mrs miller"))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        try:
            written(folder, inputs)
        except ContractError:  # metadata that no bundle can hold
            return
        with_knowledge = verdicts(folder, inputs, queries)
        patch.setattr(StatedRecords, "metadata_of", lambda self, row: None)
        assert with_knowledge == verdicts(folder, inputs, queries)
