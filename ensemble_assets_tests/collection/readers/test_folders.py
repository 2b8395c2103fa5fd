"""Finding files: formats, links, hidden names, names that cannot be printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import choose, discover
from ensemble_assets.collection.readers.formats import format_of, holds_chunk_files
from ensemble_assets.common.errors import InputError, SettingsError
from ensemble_assets_tests.collection.readers.folders import lines, read, texts, write


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_chunks.json", "chunk_files"),
        ("deep/er/a_chunks.json", "chunk_files"),
        ("_chunks.json", "chunk_files"),
        ("chunks.json", "chunk_files"),
        (".deep/.er/.a_chunks.json", "chunk_files"),
        ("qrels/a_chunks.json", "chunk_files"),
        ("deep/qrels/a_chunks.json", "chunk_files"),
        ("queries.json", None),
        ("ultimate_embeddings_v4_metadata.json", None),
        ("ultimate_embeddings_v4_processing_summary.json", None),
        ("A_CHUNKS.JSON", "chunk_files"),
        ("a_chunks.json.bak", None),
        ("chunk_summary.json", None),
        ("processing_summary.json", None),
        ("corpus.jsonl", "beir"),
        ("sub/corpus.jsonl", "beir"),
        ("documents.jsonl", "jsonl"),
        ("a_chunks.jsonl", "jsonl"),
        ("queries.jsonl", None),
        ("queries.parquet", None),
        ("qrels.jsonl", None),
        ("qrels/anything.jsonl", None),
        ("ultimate_embeddings_v4_qdrant.jsonl", None),
        ("ultimate_embeddings_v4_sparse.jsonl", None),
        ("ultimate_embeddings_v4_rerank.jsonl", None),
        ("a.parquet", "parquet"),
    ],
)
def test_the_name_decides_the_format(name: str, expected: str | None) -> None:
    assert format_of(name) == expected


def test_a_chosen_format_is_read_alone_and_the_others_are_counted(tmp_path: Path) -> None:
    files = {"a_chunks.json": ["old"], "b.jsonl": lines({"text": "new"}), "c.jsonl": lines({"text": "newer"})}
    frame, report = read(tmp_path / "c", files, format_name="chunk_files")
    assert texts(frame) == ["old"]
    assert report.counts == {"other_format_ignored": 2}
    frame, report = read(tmp_path / "c", files, format_name="jsonl")
    assert texts(frame) == ["new", "newer"]
    assert report.counts == {"other_format_ignored": 1}


def test_a_chosen_format_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no parquet files"):
        read(tmp_path / "c", {"a_chunks.json": ["x"]}, format_name="parquet")


def test_an_unknown_format_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'xml'.*chunk_files, beir, jsonl, parquet"):
        read(tmp_path / "c", {"a_chunks.json": ["x"]}, format_name="xml")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: is not a folder"):
        read_chunks(tmp_path / "nowhere", 256)


def test_links_inside_the_folder_are_read_once(tmp_path: Path) -> None:
    folder = write(tmp_path, {"docs/a_chunks.json": ["a"], "blobs/3f2a": '["b"]'})
    (folder / "again_chunks.json").symlink_to("docs/a_chunks.json")
    (folder / "b_chunks.json").symlink_to("blobs/3f2a")
    (folder / "b2_chunks.json").symlink_to("blobs/3f2a")
    (folder / "same-docs").symlink_to("docs")
    frame, report = read_chunks(folder, 256)
    assert sorted(texts(frame)) == ["a", "b"]
    assert report.counts == {"repeated_link": 3}


def test_a_circle_of_folder_links_ends(tmp_path: Path) -> None:
    folder = write(tmp_path, {"docs/a_chunks.json": ["a"]})
    (folder / "docs" / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    frame, report = read_chunks(folder, 256)
    assert texts(frame) == ["a"]
    assert report.counts == {"repeated_link": 2}


@pytest.mark.parametrize("name", ["a_chunks.json", "docs"])
def test_a_link_that_leads_out_is_refused_unless_it_is_allowed(tmp_path: Path, name: str) -> None:
    outside = write(tmp_path / "outside", {"docs/a_chunks.json": ["secret"], "a_chunks.json": ["secret"]})
    folder = write(tmp_path / "c", {"b_chunks.json": ["b"]})
    (folder / name).symlink_to(outside / name)
    with pytest.raises(InputError, match=rf"^{name}: is a symbolic link that leads out.*chunks\.follow_links"):
        read_chunks(folder, 256)
    frame, _ = read_chunks(folder, 256, follow_links=True)
    assert sorted(texts(frame)) == ["b", "secret"]


def test_allowed_links_to_each_other_end(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"a_chunks.json": ["a"]})
    folder = write(tmp_path / "c", {"b_chunks.json": ["b"]})
    (folder / "out").symlink_to(outside)
    (folder / "out2").symlink_to(outside)
    (outside / "back").symlink_to(folder)
    frame, report = read_chunks(folder, 256, follow_links=True)
    assert sorted(texts(frame)) == ["a", "b"]
    assert report.counts == {"repeated_link": 2}


def test_a_link_outside_that_means_nothing_here_is_left_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", {"b_chunks.json": ["b"]})
    (tmp_path / "notes.txt").write_text("x")
    (folder / "notes.txt").symlink_to(tmp_path / "notes.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "gone.txt")
    frame, report = read_chunks(folder, 256)
    assert texts(frame) == ["b"]
    assert report.counts == {}


@pytest.mark.parametrize("target", ["nowhere_chunks.json", "a_chunks.json"])
def test_a_chunk_file_link_to_nowhere_or_itself_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "a_chunks.json").symlink_to(target)
    with pytest.raises(InputError, match="leads nowhere or in a circle"):
        read_chunks(tmp_path, 256)


def test_the_collection_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", {"docs/a_chunks.json": ["a"]})
    (tmp_path / "c").symlink_to("real")
    assert texts(read_chunks(tmp_path / "c", 256)[0]) == ["a"]


def test_names_that_cannot_be_printed_are_shown_with_replacement_characters(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n_chunks.json")
    (tmp_path / name).write_text('["x"]')
    frame, _ = read_chunks(tmp_path, 256)
    assert frame["source"].to_list() == ["caf\ufffd\ufffd_chunks.json"]
    (tmp_path / name).write_text("oops")
    with pytest.raises(InputError) as caught:
        read_chunks(tmp_path, 256)
    assert str(caught.value).startswith("caf\ufffd\ufffd_chunks.json, line 1")


def test_whether_a_folder_holds_chunk_files_is_known_by_their_names(tmp_path: Path) -> None:
    write(tmp_path, {"deep/er/a_chunks.json": "not read", "h/.a_chunks.json": "", "q/queries.jsonl": ""})
    write(tmp_path, {"m/._a_chunks.json": b"\0\x05\x16\x07 attributes of macOS"})
    assert holds_chunk_files(tmp_path)
    assert holds_chunk_files(tmp_path / "h")
    assert not holds_chunk_files(tmp_path, deep=False)
    assert not holds_chunk_files(tmp_path / "q")
    assert not holds_chunk_files(tmp_path / "m")
    assert not holds_chunk_files(tmp_path / "not there")


def test_a_file_of_another_name_makes_a_collection_if_it_has_a_text(tmp_path: Path) -> None:
    write(tmp_path, {"a/settings.json": {"lr": 1}, "b/settings.json": {"lr": 1}, "b/.all.json": [{"text": "x"}]})
    write(tmp_path, {"c/far.json": " " * ((1 << 20) - 3) + '"text"'})
    assert not holds_chunk_files(tmp_path / "a")
    assert holds_chunk_files(tmp_path / "b")
    assert holds_chunk_files(tmp_path / "c"), "the key stands across two blocks"


def test_documents_that_are_not_cut_are_named_with_the_step_that_cuts_them(tmp_path: Path) -> None:
    write(tmp_path, {"notes/a.md": "# A", "notes/b.MD": "# B", "notes/c.txt": "c", "notes/queries.tsv": "1\tx"})
    for reading in (lambda: discover(tmp_path), lambda: read_chunks(tmp_path / "notes", 256)):
        with pytest.raises(
            InputError,
            match=r"has no chunk files, but 2 \.md, 1 \.txt\. Documents must be cut.*: ensemble-assets chunk FOLDER ",
        ):
            reading()
    write(tmp_path, {"other/x_chunks.json": ["x"]})
    beside = discover(tmp_path)
    assert [each.name for each in beside.collections] == ["other"]
    assert list(beside.uncut) == ["notes"]
    with pytest.raises(InputError, match=r"'notes': has no chunk files, but 2 \.md, 1 \.txt"):
        choose(beside, ["notes"])
