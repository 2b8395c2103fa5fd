"""Sparse vectors in bundles, with the sparse stage on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.inputs import BundleInputs, LiveSparse
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, contents, live_sparse
from ensemble_assets_tests.export.runs import everything_on, lists

TERMS = {"term_weights": [{"term": "Alpha", "weight": 0.5}], "total_terms": 9, "weighting": "bm25"}
CHUNKS = [
    Chunk("with terms", {"sparse_features": TERMS, "own": 1}),
    Chunk("without"),
    Chunk("failed, mapped from its terms", {"sparse_features": TERMS}),
    Chunk("failed, nothing to map"),
    Chunk("failed, its terms not in the vocabulary", {"sparse_features": TERMS}),
]
ROWS = [{"beta": 1.5, "alpha": 0.25}, {"gamma": 1e-5}, {"alpha": 0.75}, {}, {}]
STATS_KEYS = ["weight_norm", "unique_terms", "total_terms", "weighting", "source", "model", "index_space", "norm"]


@pytest.fixture
def live() -> BundleInputs:
    return bundle_of(CHUNKS, sparse=live_sparse(ROWS, [1, 1, 2, 0, 2]))


def payloads(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / f"{PREFIX}_qdrant.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["payload"] for line in lines]


def test_live_vectors_stand_in_payload_sidecar_and_metadata(live: BundleInputs, tmp_path: Path) -> None:
    written = write_v40(tmp_path, live)
    expected = {
        "indices": [2, 1],
        "values": [1.5, 0.25],
        "tokens": ["beta", "alpha"],
        "stats": {
            "weight_norm": float(np.linalg.norm(np.array([1.5, 0.25], dtype=np.float32))),
            "unique_terms": 2,
            "total_terms": 9,
            "weighting": "splade",
            "source": "live",
            "model": "splade-tiny",
            "index_space": "splade-tiny/vocabulary",
            "norm": "as_inferred",
        },
    }
    assert payloads(tmp_path)[0]["sparse_vector"] == expected
    assert json.loads((tmp_path / f"{PREFIX}_metadata.json").read_text())[0]["sparse_vector"] == expected
    first = json.loads((tmp_path / f"{PREFIX}_sparse.jsonl").read_text().splitlines()[0])
    assert first == {
        "id": 0,
        "sparse_vector": {"indices": [2, 1], "values": [1.5, 0.25]},
        "tokens": ["beta", "alpha"],
        "stats": expected["stats"],
    }
    assert (written.sparse.live, written.sparse.from_metadata, written.sparse.echoed) == (2, 1, 3)


def test_live_weights_can_have_unit_norm_as_the_echo_has_and_the_gates_agree(
    live: BundleInputs, tmp_path: Path
) -> None:
    assert live.sparse is not None
    unit = replace(live, sparse=replace(live.sparse, unit=True))
    folder = write_bundle(tmp_path, unit, lambda written: everything_on(), lists()).folder
    for inputs, plain in ((unit, payloads(folder)), (live, payloads(write_again(live, tmp_path / "plain")))):
        for row, payload in enumerate(plain):
            vector = payload.get("sparse_vector")
            if vector and vector["indices"]:
                assert vector["stats"]["norm"] == ("unit" if inputs is unit else "as_inferred")
                expected = 1.0 if inputs is unit else vector["stats"]["weight_norm"]
                assert np.linalg.norm(vector["values"]) == pytest.approx(expected, abs=1e-6), row
    alignment = {r.name: r for r in judge_bundle(open_bundle(folder), Limits(), inputs=unit)}["row_alignment"]
    assert alignment.passed, alignment.problems
    wrong = {r.name: r for r in judge_bundle(open_bundle(folder), Limits(), inputs=live)}["row_alignment"]
    assert "values of its sparse_vector are not those of the sparse stage's row" in wrong.problems[0]


def write_again(bundle: BundleInputs, folder: Path) -> Path:
    folder.mkdir()
    write_v40(folder, bundle)
    return folder


def test_a_vector_from_metadata_says_so(live: BundleInputs, tmp_path: Path) -> None:
    write_v40(tmp_path, live)
    stats = payloads(tmp_path)[2]["sparse_vector"]["stats"]
    assert list(stats) == STATS_KEYS
    assert (stats["source"], stats["weighting"], stats["total_terms"]) == ("metadata", "bm25", 9)


def test_v40_keys_stay_where_they_are_and_new_ones_come_last(live: BundleInputs, tmp_path: Path) -> None:
    for name, bundle in (("on", live), ("off", replace(live, sparse=None))):
        (tmp_path / name).mkdir()
        write_v40(tmp_path / name, bundle)
    on, off = payloads(tmp_path / "on"), payloads(tmp_path / "off")
    for row, (new, old) in enumerate(zip(on, off, strict=True)):
        assert list(new)[: len(old)] == list(old), row
        assert set(new) - set(old) <= {"sparse_vector"}
        assert {k: v for k, v in new.items() if k != "sparse_vector"} == {
            k: v for k, v in old.items() if k != "sparse_vector"
        }
    assert list(on[1])[-1] == "sparse_vector"
    assert "sparse_vector" not in on[3]
    stats = json.loads((tmp_path / "on" / f"{PREFIX}_stats.json").read_text())["sparse_vector_stats"]
    assert stats == {
        "total_chunks": 5,
        "sparse_vectors_available": 3,
        "coverage_ratio": 0.6,
        "live": {"model": "splade-tiny", "sparse_vectors_available": 3, "from_metadata": 1, "coverage_ratio": 0.6},
    }


def test_an_echo_without_a_live_vector_leaves_its_key_and_nothing_in_it(live: BundleInputs, tmp_path: Path) -> None:
    write_v40(tmp_path, live)
    empty = payloads(tmp_path)[4]["sparse_vector"]
    assert (empty["indices"], empty["values"], empty["tokens"]) == ([], [], [])
    assert list(empty["stats"]) == STATS_KEYS
    assert (empty["stats"]["weight_norm"], empty["stats"]["unique_terms"]) == (0.0, 0)


def test_tokens_and_values_are_encoded_as_the_library_does(tmp_path: Path) -> None:
    row = {'"quo\\ted"': 1e-7, "中文": 0.1, "😀": 3.0, "\x01": 2.5e-5}
    write_v40(tmp_path, bundle_of([Chunk("a")], sparse=live_sparse([row], [1])))
    line = (tmp_path / f"{PREFIX}_sparse.jsonl").read_text(encoding="utf-8")
    assert line == json.dumps(json.loads(line), ensure_ascii=False) + "\n"
    assert json.loads(line)["sparse_vector"]["values"] == [float(np.float32(weight)) for weight in row.values()]
    assert json.loads(line)["tokens"] == list(row)


def test_a_mapped_artefact_gives_the_same_bytes_and_its_pages_can_be_released(tmp_path: Path) -> None:
    count = 2100  # more rows than between two releases
    chunks, row = [Chunk("a")] * count, {"alpha": 0.5, "beta": 1.5}
    plain = live_sparse([row] * count, [1] * count)
    mapped = {}
    for name in ("indptr", "indices", "values", "source"):
        np.save(tmp_path / f"{name}.npy", getattr(plain, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    for folder, sparse in (("plain", plain), ("mapped", replace(plain, **mapped))):
        (tmp_path / folder).mkdir()
        write_v40(tmp_path / folder, bundle_of(chunks, sparse=sparse))
    assert contents(tmp_path / "mapped") == contents(tmp_path / "plain")


def _spoilt(**changes: Any) -> LiveSparse:
    return replace(live_sparse(ROWS, [1, 1, 2, 0, 2]), **changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"source": np.array([1, 0, 2, 0, 0], np.uint8)}, "chunk row 1: a vector, but no source"),
        ({"source": np.array([1, 9, 2, 0, 0], np.uint8)}, "chunk row 1: unknown source code 9"),
        ({"values": np.array([1, 1, np.nan, 1], np.float32)}, "chunk row 1: a value that is not finite"),
        ({"indices": np.array([1, 1, 2, 1], np.int32)}, "chunk row 0: an index twice"),
        ({"indices": np.array([1, 2, 9, 1], np.int32)}, "chunk row 1: an index outside the vocabulary of 4 tokens"),
        ({"indices": np.array([1, 2, -1, 1], np.int32)}, "chunk row 1: an index outside"),
        ({"source": np.zeros(4, np.uint8)}, "sparse source: expected 5 entries, found 4"),
        ({"indptr": np.array([0, 2, 3, 4, 4], np.int64)}, "sparse indptr: expected 6 entries, found 5"),
        ({"indptr": np.array([0, 3, 2, 4, 4, 4], np.int64)}, "expected 0 first and no decrease"),
        ({"values": np.ones(3, np.float32)}, "sparse values: expected 4 entries, found 3"),
    ],
)
def test_an_unsound_sparse_artefact_is_refused(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=found):
        write_v40(tmp_path, bundle_of(CHUNKS, sparse=_spoilt(**changes)))
