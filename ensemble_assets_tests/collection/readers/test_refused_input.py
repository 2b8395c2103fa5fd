"""Every kind of input that cannot be used is an error that names the place and never quotes the content."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.collection.readers.json_values import MAX_DEPTH
from ensemble_assets.common.errors import InputError
from ensemble_assets_tests.collection.readers.folders import lines, nested, read, texts

GOOD = {"text": "good words", "metadata": {"chunk_id": "good"}}
SECRET = "zanzibar-secret-text"
zst = zstandard.ZstdCompressor().compress


def far_time() -> bytes:
    stream = io.BytesIO()
    times = pl.Series([2**62]).cast(pl.Datetime("us"))
    pl.DataFrame({"text": ["x"], "when": times}).write_parquet(stream)
    return stream.getvalue()


ERRORS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "broken JSON",
        {"a_chunks.json": '[{"text": "x"},\n  oops]'},
        ["a_chunks.json, line 2, column 3", "not valid JSON"],
    ),
    ("truncated JSON", {"a_chunks.json": f'[{{"text": "{SECRET}'}, ["a_chunks.json, line 1", "not valid JSON"]),
    ("two documents", {"a_chunks.json": "[] []"}, ["line 1, column 4", "extra data"]),
    ("raw control character", {"a_chunks.json": '["a\nb"]'}, ["line 1, column 4", "(invalid control character)"]),
    ("raw NUL", {"a_chunks.json": b'["a\0b"]'}, ["line 1, column 4"]),
    ("bad escape", {"a_chunks.json": f'["\\x{SECRET}"]'}, ["line 1", "escape"]),
    ("empty file", {"a_chunks.json": ""}, ["a_chunks.json", "is empty"]),
    ("blank file", {"a_chunks.json": " \n\n"}, ["a_chunks.json", "is empty"]),
    ("empty Parquet", {"a.parquet": b""}, ["a.parquet", "is empty"]),
    ("a number", {"a_chunks.json": "17"}, ["a_chunks.json", "holds a number"]),
    ("null", {"a_chunks.json": "null"}, ["holds null"]),
    ("number in the list", {"a_chunks.json": [GOOD, 17]}, ["a_chunks.json, record 2", "is a number"]),
    ("list in the list", {"a_chunks.json": [[GOOD]]}, ["record 1", "is a list"]),
    ("null in the list", {"a_chunks.json": [None]}, ["record 1", "is null"]),
    ("no text", {"a_chunks.json": [{"metadata": {}}]}, ["record 1", "no 'text'"]),
    ("dict that is no container", {"a_chunks.json": {"summary": 3}}, ["record 1", "no 'text'"]),
    ("text of a wrong type", {"a_chunks.json": [{"text": [SECRET]}]}, ["record 1", "a list as 'text'"]),
    (
        "metadata of a wrong type",
        {"a_chunks.json": [{"text": "x", "metadata": [1]}]},
        ["record 1", "a list as 'metadata'"],
    ),
    ("Latin-1", {"a_chunks.json": '["caf\xe9"]'.encode("latin-1")}, ["a_chunks.json, byte 5", "not UTF-8"]),
    ("Latin-1 in line 2", {"a.jsonl": b'{"text": "x"}\n{"text": "caf\xe9"}'}, ["a.jsonl, byte 27", "not UTF-8"]),
    ("UTF-16", {"a_chunks.json": '["x"]'.encode("utf-16")}, ["byte 0", "not UTF-8"]),
    ("encoded surrogate", {"a_chunks.json": b'["\xed\xa0\x80"]'}, ["byte 2", "not UTF-8"]),
    ("deep nesting", {"a_chunks.json": "[" * 100_000}, ["line 1", "nested deeper"]),
    (
        "deep metadata",
        {"a_chunks.json": [{"text": "x", "metadata": {"k": nested(MAX_DEPTH)}}]},
        ["record 1", "nested deeper"],
    ),
    ("deep metadata in JSONL", {"a.jsonl": lines({"text": "x", "k": nested(900)})}, ["nested deeper"]),
    (
        "huge number",
        {"a_chunks.json": '[{"text": "x", "metadata": {"n": ' + "9" * 5000 + "}}]"},
        ["line 1", "4300 digits"],
    ),
    ("JSONL: broken line", {"a.jsonl": '{"text": "x"}\n\n{"text": '}, ["a.jsonl, line 3, column 10", "not valid JSON"]),
    ("JSONL: list", {"a.jsonl": "[1]\n"}, ["a.jsonl, line 1", "is a list"]),
    ("JSONL: no text", {"a.jsonl": lines({"id": 1})}, ["record 1", "no 'text'"]),
    ("JSONL: id of a wrong type", {"a.jsonl": lines({"id": [1], "text": "x"})}, ["record 1", "a list as 'id'"]),
    ("JSONL: true as id", {"a.jsonl": lines({"id": True, "text": "x"})}, ["record 1", "true or false as 'id'"]),
    ("JSONL: blank id", {"a.jsonl": lines({"_id": " ", "text": "x"})}, ["record 1", "an empty id as '_id'"]),
    ("JSONL: long id", {"a.jsonl": lines({"_id": "x" * 600, "text": "x"})}, ["record 1", "512 characters"]),
    (
        "BEIR: title of a wrong type",
        {"corpus.jsonl": lines({"_id": "1", "title": [3], "text": "x"})},
        ["record 1", "a list as 'title'"],
    ),
    (
        "several faults of a file, all at once",
        {"a.jsonl": '{"text": "x"}\n{"a" 1}\n{"text": [1]}\n[]\n'},
        ["a.jsonl, line 2", "not valid JSON", "a.jsonl, record 3: has a list as 'text'", "a.jsonl, line 4: is a list"],
    ),
    (
        "more faults than are named",
        {"a_chunks.json": [1] * 30},
        ["a_chunks.json, record 1", "a_chunks.json, record 20: is a number and perhaps more"],
    ),
    (
        "other fields only",
        {"a.jsonl": lines({"id": 1, "words": "x"})},
        ["no 'text' (it has 'id', 'words')", "text_field"],
    ),
    (
        "cut off gz",
        {"a.jsonl.gz": gzip.compress(b'{"text": "x"}' * 99)[:40]},
        ["a.jsonl.gz", "decompressed (EOFError)"],
    ),
    ("no gz", {"a.jsonl.gz": "x"}, ["a.jsonl.gz", "not compressed with gzip, as its name says"]),
    ("no zst", {"a.jsonl.zst": "x"}, ["a.jsonl.zst", "not compressed with zstd, as its name says"]),
    ("damaged gz", {"a.jsonl.gz": b"\x1f\x8b\x08" + b"\xff" * 30}, ["a.jsonl.gz", "cannot be decompressed"]),
    ("cut off zst", {"a.jsonl.zst": zst(b'{"text": "x"}\n' * 99)[:-3]}, ["a.jsonl.zst", "decompressed (EOFError)"]),
    ("compressed twice", {"a.jsonl.gz": gzip.compress(gzip.compress(b"x"))}, ["a.jsonl.gz", "compressed twice"]),
    ("zip called JSONL", {"a.jsonl": b"PK\x03\x04" + b"\xff" * 60}, ["a.jsonl", "is a zip archive", "Unpack it"]),
    ("zip in gz", {"a.jsonl.gz": gzip.compress(b"PK\x03\x04" + b"\xff" * 60)}, ["a.jsonl.gz", "is a zip archive"]),
    ("Parquet called JSONL", {"a.jsonl": b"PAR1\xff"}, ["a.jsonl", "is a Parquet file", "end with .parquet"]),
    ("UTF-16 with mark", {"a.jsonl": '{"text": "x"}\n'.encode("utf-16")}, ["a.jsonl, byte 0", "UTF-16, not UTF-8"]),
    ("UTF-16 without mark", {"a_chunks.json": '["x"]'.encode("utf-16-le")}, ["byte 0", "UTF-16, not UTF-8"]),
    ("far time in Parquet", {"a.parquet": far_time()}, ["a.parquet", "a time beyond the years 1 to 9999", "as text"]),
    ("only an archive", {"a.zip": b"PK", "b.tar.gz": b"x"}, ["no chunk files, but 1 .zip, 1 .gz", "be unpacked"]),
    ("BEIR: no text", {"corpus.jsonl": lines({"_id": "1", "title": "x"})}, ["record 1", "no 'text'"]),
    ("damaged Parquet", {"a.parquet": b"PAR1" + b"\0" * 60}, ["a.parquet", "not a readable Parquet file"]),
    (
        "mixed formats",
        {"a_chunks.json": [GOOD], "b.jsonl": lines({"text": "x"})},
        ["chunk_files: a_chunks.json", "jsonl: b.jsonl"],
    ),
    ("nothing", {"readme.txt": "x"}, ["has no chunk files, but 1 .txt. Documents must be cut"]),
    ("only summaries", {"chunk_summary.json": {}, "processing_summary.json": {}}, ["has no chunk files"]),
    ("empty list", {"a_chunks.json": []}, ["no usable chunk", "no records"]),
    ("only blanks", {"a_chunks.json": [" ", {"text": ""}]}, ["no usable chunk in 1 file(s) with 2 record(s)"]),
    (
        "key made equal",
        {"a_chunks.json": '[{"text": "x", "metadata": {"\\ud800": 1, "\\ud801": 2}}]'},
        ["record 1", "differ only"],
    ),
]


@pytest.mark.parametrize(("files", "parts"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_input_that_cannot_be_used_is_an_error_with_the_place(
    tmp_path: Path, files: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "c", files)
    for part in parts:
        assert part in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.remedy


BROKEN = {
    "a_chunks.json": ["good"],
    "b_chunks.json": "[{",
    "c_chunks.json": ["also good", {"text": []}],
    "d_chunks.json": b"\xff",
    "e_chunks.json": ["last"],
}


def test_one_error_names_all_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "c", BROKEN)
    said = str(caught.value)
    assert said.startswith("c: has 3 files that cannot be used: b_chunks.json, line 1")
    assert all(place in said for place in ("c_chunks.json, record 2: has a list as 'text'", "d_chunks.json, byte 0"))
    assert said.endswith("set chunks.on_error to skip")
    with pytest.raises(InputError, match=r"f24_chunks.json.*; and 10 more"):
        read(tmp_path / "many", {f"f{n + 10}_chunks.json": "[" for n in range(30)})


def test_broken_files_can_be_left_out_whole_counted_and_named(tmp_path: Path) -> None:
    frame, report = read(tmp_path / "c", BROKEN, skip_broken=True)
    assert texts(frame) == ["good", "last"]
    assert (report.files, report.records, report.rows, report.counts) == (2, 2, 2, {"unusable_file": 3})
    assert [place.source for place in report.places["unusable_file"]] == [
        "b_chunks.json",
        "c_chunks.json",
        "d_chunks.json",
    ]
    assert "3 times: a file that cannot be used was left out (noticed), first in b_chunks.json" in report.warnings()
    with pytest.raises(InputError, match=r"no usable chunk in 0 file\(s\).*cannot be used was left out"):
        read(tmp_path / "d", {"b_chunks.json": "[{"}, skip_broken=True)


def test_a_file_that_breaks_after_many_lines_leaves_nothing_behind(tmp_path: Path) -> None:
    many = lines(*({"text": f"t{n}"} for n in range(10_000)))
    frame, report = read(tmp_path / "c", {"a.jsonl": many + "{", "b.jsonl": lines({"text": "x"})}, skip_broken=True)
    assert (texts(frame), report.records) == (["x"], 1)


def test_repeated_ids_are_refused_on_request_and_all_named(tmp_path: Path) -> None:
    files = {
        "a.jsonl": lines({"id": "1", "text": "x"}, {"id": "a b", "text": "x"}),
        "b.jsonl": lines({"id": "1", "text": "z"}, {"id": "a_b", "text": "y"}, {"id": "1", "text": "x"}),
    }
    with pytest.raises(InputError) as caught:
        read(tmp_path / "c", files, limits=ReadLimits(refuse_repeated_ids=True))
    assert str(caught.value).startswith(
        "b.jsonl, record 1: has the same id as a.jsonl, record 1, with different content; so have b.jsonl, record 2 as "
        "a.jsonl, record 2. Give"
    )
