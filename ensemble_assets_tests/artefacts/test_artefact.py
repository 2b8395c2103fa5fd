"""Artefacts: whole or not at all, verified on load, mapped and scanned rather than read, and never pickled."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble_assets.artefacts.records import DenseRecord
from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return artefact_store(str(tmp_path / "artefacts"), tmp_path / "cache")


def save(store: ArtefactStore, value: float = 1.0, rows: int = 4):
    writer = store.begin("docs", "dense_embeddings")
    writer.array("vectors", np.full((rows, 3), value, dtype=np.float32))
    writer.frame("chunks", pl.DataFrame({"row": range(rows)}, schema={"row": pl.UInt32}))
    artefact = writer.seal(DenseRecord("dense", "completed", items=rows))
    store.publish("docs", "dense_embeddings", artefact)
    return artefact


def test_round_trip_maps_arrays_and_scans_frames(store: ArtefactStore) -> None:
    save(store, 2.5)
    loaded = store.load("docs", "dense_embeddings")
    assert isinstance(loaded.array("vectors"), np.memmap)
    assert np.array_equal(loaded.array("vectors"), np.full((4, 3), 2.5, dtype=np.float32))
    assert isinstance(loaded.scan("chunks"), pl.LazyFrame)
    assert loaded.scan("chunks").collect()["row"].to_list() == [0, 1, 2, 3]
    assert loaded.record == DenseRecord("dense", "completed", items=4)


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.float32, np.int32, np.int64, np.uint8, np.bool_]),
        shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0),
    )
)
def test_any_array_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("artefact")
    store = artefact_store(str(folder), folder)
    writer = store.begin("c", "a")
    writer.array("x", values)
    store.publish("c", "a", writer.seal(DenseRecord("dense", "completed")))
    loaded = store.load("c", "a").array("x")
    assert loaded.dtype == values.dtype
    assert np.array_equal(loaded, values, equal_nan=values.dtype.kind == "f")


def test_object_arrays_are_refused(store: ArtefactStore) -> None:
    with pytest.raises(ValueError, match="array of objects"):
        store.begin("docs", "x").array("bad", np.array([{}], dtype=object))


def test_a_full_disk_is_called_so(store: ArtefactStore) -> None:
    writer = store.begin("notes", "chunks")
    (writer.folder / "chunks.parquet").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.frame("chunks", pl.DataFrame({"a": np.random.default_rng(0).random(100_000)}))
    assert caught.value.errno == errno.ENOSPC


def test_the_version_is_the_content(store: ArtefactStore) -> None:
    first, second, third = save(store, 1.0), save(store, 1.0), save(store, 3.0)
    assert first.version == second.version != third.version


def test_a_flipped_byte_is_found(store: ArtefactStore) -> None:
    artefact = save(store)
    path = artefact.folder / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=r"vectors\.npy .*content hash"):
        store.load("docs", "dense_embeddings")


def test_a_missing_artefact_says_what_to_do(store: ArtefactStore) -> None:
    with pytest.raises(ArtefactError, match="Run the collection first"):
        store.load("docs", "chunks")


def test_an_unknown_name_lists_what_is_there(store: ArtefactStore) -> None:
    save(store)
    with pytest.raises(ArtefactError, match=r"no queries\.npy; it has chunks\.parquet, vectors\.npy"):
        store.load("docs", "dense_embeddings").array("queries")


def test_a_column_that_an_earlier_version_did_not_write_is_named(store: ArtefactStore) -> None:
    save(store)
    loaded = store.load("docs", "dense_embeddings")
    for read in (loaded.frame, loaded.scan):
        assert read("chunks", columns=["row"]).lazy().collect().columns == ["row"]
        with pytest.raises(ArtefactError, match=r"no column 'rest'; it has row\. Materialise the asset again"):
            read("chunks", columns=["row", "rest"])


def test_a_frame_that_does_not_fit_is_refused_before_reading(store: ArtefactStore, tmp_path: Path) -> None:
    save(store, rows=1000)
    base = str(tmp_path / "artefacts")
    small = artefact_store(base, tmp_path, budget_bytes=3_999).load("docs", "dense_embeddings")
    with pytest.raises(MemoryBudgetError, match=r"device\.host_budget_gb"):
        small.frame("chunks")
    assert small.scan("chunks").select("row").head(1).collect().height == 1
    large = artefact_store(base, tmp_path, budget_bytes=4_000).load("docs", "dense_embeddings")
    assert large.frame("chunks", columns=["row"]).height == 1000


def test_unpublished_versions_are_invisible(store: ArtefactStore) -> None:
    save(store, 1.0)
    writer = store.begin("docs", "dense_embeddings")
    writer.array("vectors", np.zeros((1, 3), dtype=np.float32))
    writer.seal(DenseRecord("dense", "completed"))
    assert store.load("docs", "dense_embeddings").record.items == 4


def test_old_versions_are_removed_but_one_after_their_grace_time(tmp_path: Path) -> None:
    store = artefact_store(str(tmp_path / "artefacts"), tmp_path / "cache", grace_seconds=0)
    for value in range(6):
        save(store, float(value))
    home = tmp_path / "artefacts" / "docs" / "dense_embeddings"
    assert len([path for path in home.iterdir() if path.is_dir()]) == 2


def test_a_reader_keeps_what_it_opened_while_newer_versions_arrive(store: ArtefactStore) -> None:
    save(store, 1.0)
    held = store.load("docs", "dense_embeddings")
    for value in range(5):
        save(store, float(value))
    assert held.array("vectors")[0, 0] == 1.0


def test_a_killed_writer_leaves_the_old_version_and_no_litter(tmp_path: Path) -> None:
    store = artefact_store(str(tmp_path), tmp_path)
    save(store, 1.0)
    script = (
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from ensemble_assets.artefacts.store import artefact_store\n"
        "writer = artefact_store(sys.argv[1], Path(sys.argv[1])).begin('docs', 'dense_embeddings')\n"
        "writer.array('vectors', np.zeros((9, 3), dtype=np.float32))\n"
        "print(writer.folder.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = tmp_path / "docs" / "dense_embeddings" / process.stdout.readline().strip()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert left.is_dir()
    assert store.load("docs", "dense_embeddings").array("vectors").shape == (4, 3)
    store.begin("docs", "dense_embeddings").discard()
    assert not left.exists()


def test_readers_always_see_a_whole_version(tmp_path: Path) -> None:
    store = artefact_store(str(tmp_path), tmp_path)
    save(store, 0.0)
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from ensemble_assets.artefacts.records import DenseRecord\n"
        "from ensemble_assets.artefacts.store import artefact_store\n"
        "store = artefact_store(sys.argv[1], Path(sys.argv[1]))\n"
        "for value in range(1, 10_000):\n"
        "    writer = store.begin('docs', 'dense_embeddings')\n"
        "    writer.array('vectors', np.full((50, 3), value % 7, dtype=np.float32))\n"
        "    store.publish('docs', 'dense_embeddings', writer.seal(DenseRecord('dense', 'completed')))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    seen: set[float] = set()
    try:
        until = time.monotonic() + 60  # the writer imports its libraries first, which a loaded machine makes slow
        while len(seen) < 5 and time.monotonic() < until:
            vectors = store.load("docs", "dense_embeddings").array("vectors")
            assert len(set(vectors.ravel().tolist())) == 1
            seen.add(float(vectors[0, 0]))
    finally:
        process.kill()
        process.wait()
    assert len(seen) == 5
