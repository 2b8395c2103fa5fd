"""The faiss file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ensemble_assets.export.write.v40_files import INDEXES, why_no_flat_index, write_flat_index, write_index, write_v40
from ensemble_assets.settings.options import Export
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, unit_rows

faiss = pytest.importorskip("faiss", reason="faiss-cpu is an optional extra")


@pytest.mark.parametrize(("count", "width"), [(0, 3), (1, 1), (9000, 5)])
def test_the_streamed_file_is_what_faiss_writes(count: int, width: int, tmp_path: Path) -> None:
    vectors = unit_rows(count, width)
    write_flat_index(tmp_path / "ours", vectors)
    index = faiss.IndexFlatIP(width)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_bundles_index_finds_every_chunk_by_its_vector(tmp_path: Path) -> None:
    bundle = bundle_of([Chunk(str(i)) for i in range(20)])
    written = write_v40(tmp_path, bundle)
    assert f"{PREFIX}_index.faiss" in written.files
    assert written.skipped == {}
    index = faiss.read_index(str(tmp_path / f"{PREFIX}_index.faiss"))
    _, found = index.search(np.asarray(bundle.primary.vectors), 1)
    assert found[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("kind", "share", "most_bytes"),
    [("fp16", 0.99, 2.3), ("int8", 0.95, 1.3), ("hnsw", 0.95, 13.0), ("hnsw_int8", 0.9, 10.0)],
)
def test_every_kind_finds_what_the_flat_index_finds(kind: str, share: float, most_bytes: float, tmp_path: Path) -> None:
    """``most_bytes`` are those of the file for every number of a vector; a graph's node has 64 links of 4 bytes."""
    vectors, questions = unit_rows(3000, 32), unit_rows(100, 32, seed=1)
    assert set(INDEXES) == set(get_args(Export.model_fields["faiss_index"].annotation)) - {"flat"}
    for each in ("flat", kind):
        write_index(tmp_path / each, vectors, each)
    flat, other = (faiss.read_index(str(tmp_path / each)) for each in ("flat", kind))
    assert other.metric_type == faiss.METRIC_INNER_PRODUCT
    assert other.ntotal == 3000
    (scores, right), (near, hits) = flat.search(questions, 10), other.search(questions, 10)
    common = [len(set(mine) & set(theirs)) for mine, theirs in zip(right.tolist(), hits.tolist(), strict=True)]
    assert sum(common) / right.size >= share
    assert np.abs(scores[:, 0] - near[:, 0]).mean() < 0.02
    assert (tmp_path / kind).stat().st_size < most_bytes * vectors.size


def test_the_flat_index_can_be_searched_on_disk(tmp_path: Path) -> None:
    vectors = unit_rows(500, 16)
    write_index(tmp_path / "flat", vectors, "flat")
    mapped = faiss.read_index(str(tmp_path / "flat"), faiss.IO_FLAG_MMAP_IFC)
    loaded = faiss.read_index(str(tmp_path / "flat"))
    for mine, theirs in zip(mapped.search(vectors[:50], 5), loaded.search(vectors[:50], 5), strict=True):
        assert mine.tolist() == theirs.tolist()


def test_the_kind_of_a_bundle_is_that_of_its_inputs(tmp_path: Path) -> None:
    bundle = replace(bundle_of([Chunk(str(i)) for i in range(20)]), index="int8")
    assert f"{PREFIX}_index.faiss" in write_v40(tmp_path, bundle).files
    index = faiss.read_index(str(tmp_path / f"{PREFIX}_index.faiss"))
    assert isinstance(index, faiss.IndexScalarQuantizer)


@pytest.mark.shared
def test_the_specimens_index_has_the_same_layout(shared: Path, tmp_path: Path) -> None:
    specimen = shared / "legacy" / "bundle_v4.0"
    write_flat_index(tmp_path / "ours", np.load(specimen / f"{PREFIX}_embeddings.npy"))
    assert (tmp_path / "ours").read_bytes() == (specimen / f"{PREFIX}_index.faiss").read_bytes()


def test_a_missing_library_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_flat_index() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_no_flat_index() == "faiss is not installed (pip install faiss-cpu)"
