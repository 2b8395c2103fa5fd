"""The faiss file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.export.write.v40_files import why_no_flat_index, write_flat_index, write_v40
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


@pytest.mark.shared
def test_the_specimens_index_has_the_same_layout(shared: Path, tmp_path: Path) -> None:
    specimen = shared / "legacy" / "bundle_v4.0"
    write_flat_index(tmp_path / "ours", np.load(specimen / f"{PREFIX}_embeddings.npy"))
    assert (tmp_path / "ours").read_bytes() == (specimen / f"{PREFIX}_index.faiss").read_bytes()


def test_a_missing_library_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_flat_index() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_no_flat_index() == "faiss is not installed (pip install faiss-cpu)"
