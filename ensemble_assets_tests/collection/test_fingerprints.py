"""Fingerprints of collection folders: they follow the content, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ensemble_assets.collection.fingerprints import FileHashes, collection_fingerprint, last_change
from ensemble_assets.common.atomic_files import file_hash
from ensemble_assets.common.json_cache import JsonCache


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a_chunks.json").write_text("[]")
    (folder / "deep" / "b_chunks.json").write_text("[1]")
    (folder / "queries.jsonl").write_text("{}\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\t0\td\t1\n")
    return folder


@pytest.mark.parametrize(
    "name", ["a_chunks.json", "deep/b_chunks.json", ".c/.d.json", "queries.jsonl", "qrels/test.tsv"]
)
def test_a_change_of_any_input_changes_it(notes: Path, name: str) -> None:
    before = collection_fingerprint(notes)
    (notes / name).parent.mkdir(exist_ok=True)
    (notes / name).write_text("[2]")
    assert collection_fingerprint(notes) != before


@pytest.mark.parametrize("name", ["README.md", "x_qdrant.jsonl", "x_stats.json", "processing_summary.json"])
def test_what_is_no_input_does_not(notes: Path, name: str) -> None:
    before = collection_fingerprint(notes)
    (notes / name).parent.mkdir(exist_ok=True)
    (notes / name).write_text("something")
    assert collection_fingerprint(notes) == before


def test_touching_and_copying_change_nothing_renaming_and_removing_do(notes: Path, tmp_path: Path) -> None:
    before = collection_fingerprint(notes)
    os.utime(notes / "a_chunks.json", (1, 1))
    notes.rename(tmp_path / "elsewhere")
    assert collection_fingerprint(tmp_path / "elsewhere") == before
    (tmp_path / "elsewhere" / "a_chunks.json").rename(tmp_path / "elsewhere" / "c_chunks.json")
    renamed = collection_fingerprint(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "c_chunks.json").unlink()
    assert len({before, renamed, collection_fingerprint(tmp_path / "elsewhere")}) == 3


def test_linked_circles_end(notes: Path) -> None:
    (notes / "round").symlink_to(notes)
    assert len(collection_fingerprint(notes)) == 32


def test_known_hashes_are_not_computed_again_but_changes_with_old_dates_are_seen(notes: Path, tmp_path: Path) -> None:
    file = notes / "a_chunks.json"
    cache = JsonCache(tmp_path / "cache" / "hashes.json")
    hashes = FileHashes(cache)
    plain = collection_fingerprint(notes)
    time.sleep(2.1)  # files changed within the last two seconds are not remembered
    assert collection_fingerprint(notes, hashes.hash_of) == plain
    hashes.store()
    again = FileHashes(cache)
    assert sorted(cache.read().values()) == sorted(file_hash(path) for path in notes.rglob("*.*") if path.is_file())
    state = file.stat()
    file.write_text("{}")  # as long as before
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert collection_fingerprint(notes, again.hash_of) == collection_fingerprint(notes) != plain


def test_stored_hashes_are_used_instead_of_reading_the_file(notes: Path, tmp_path: Path) -> None:
    cache = JsonCache(tmp_path / "hashes.json")
    file = notes / "a_chunks.json"
    state = file.stat()
    cache.put({f"{file}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}": "stored"})
    assert FileHashes(cache).hash_of(file) == "stored"


def test_hashes_of_files_that_were_not_asked_for_stay_unless_all_were_seen(notes: Path, tmp_path: Path) -> None:
    cache = JsonCache(tmp_path / "hashes.json")
    cache.put({"gone": "1"})
    hashes = FileHashes(cache)
    file = notes / "a_chunks.json"
    os.utime(file, (1, 1))
    time.sleep(2.1)  # the change of the time set ctime
    content = hashes.hash_of(file)
    hashes.store(all_seen=False)
    assert sorted(cache.read().values()) == sorted(["1", content])
    hashes.store()
    assert list(cache.read().values()) == [content]


def test_a_damaged_cache_is_as_good_as_none(notes: Path, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"a": 1}', '{"version": 1, "entries": {"a": 1}}'):
        (tmp_path / "hashes.json").write_text(content)
        hashes = FileHashes(JsonCache(tmp_path / "hashes.json"))
        assert collection_fingerprint(notes, hashes.hash_of) == collection_fingerprint(notes)


def test_the_last_change_is_the_youngest_files(notes: Path) -> None:
    for path in notes.rglob("*.*"):
        os.utime(path, (100, 100))
    os.utime(notes / "queries.jsonl", (200, 200))
    assert last_change(notes) == 200
    assert last_change(notes / "nothing") == 0
