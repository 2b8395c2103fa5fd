"""Random folders of sound, odd and broken files: what is read, skipped and refused adds up to what is there."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.queries import load_queries
from ensemble_assets.common.errors import InputError

TEXTS = st.sampled_from(["one text", "another", "", "  ", None, 2019, 1.5, "x\0y", "\ud800", "备份任务", "text " * 40])
SOUND = st.fixed_dictionaries(
    {"text": TEXTS},
    optional={
        "id": st.sampled_from(["1", "2", 3, 4.0, "a b", None]),
        "page": st.integers(),
        "metadata": st.sampled_from([None, {}, {"k": 1.5}, {"chunk_id": "m"}, '{"page": 3}', {"token_count": -1}]),
    },
)
BROKEN = st.sampled_from(
    [{"text": [1]}, {"words": "x"}, {"text": "x", "metadata": [1]}, 17, None, {"id": {}, "text": "x"}]
)
RECORDS = st.lists(SOUND, max_size=6)


def as_list(records: list[Any]) -> bytes:
    return json.dumps(records).encode()


def as_lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


FORMATS: dict[str, tuple[str, Callable[[list[Any]], bytes]]] = {
    "chunk files": ("_chunks.json", as_list),
    "JSONL": (".jsonl", as_lines),
    "corpus": ("/corpus.jsonl", as_lines),
}
SQUEEZED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "item": bytes,
    "bytes": lambda content: content + b"\xff",
    "cut": lambda content: content + b'{"',
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "twice": lambda content: gzip.compress(gzip.compress(content)),
    "archive": lambda content: b"PK\x03\x04" + content,
}
BESIDE = {
    "queries.jsonl": b'{"id": 1, "text": "x"}',
    "qrels/dev.tsv": b"1\t0\td\t1\n",
    "notes.md": b"# x",
    "x.gz": b"\x1f",
}
FEWER = max(30, settings().max_examples // 3)
"""Examples of a folder of files: it takes three times as long as a single text."""


@settings(max_examples=FEWER)
@given(
    kind=st.sampled_from(sorted(FORMATS)),
    files=st.lists(
        st.tuples(RECORDS, st.sampled_from(sorted(SQUEEZED)), st.sampled_from(["", "", *FAULTS])),
        min_size=1,
        max_size=5,
    ),
    bad=BROKEN,
    beside=st.sets(st.sampled_from(sorted(BESIDE))),
)
def test_what_is_read_skipped_and_refused_adds_up(
    tmp_path_factory: pytest.TempPathFactory, kind: str, files: list[Any], bad: Any, beside: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    ending, write = FORMATS[kind]
    sound = broken = 0
    for number, (records, squeezed, fault) in enumerate(files):
        content = write([*records, bad] if fault == "item" else records)
        content = FAULTS.get(fault, bytes)(content)
        path = folder / f"f{number}{ending}{squeezed}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(SQUEEZED[squeezed](content))
        broken += bool(fault)
        sound += 0 if fault else len(records)
    for name in beside:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(BESIDE[name])
    try:
        frame, report = read_chunks(folder, 8, skip_broken=True)
    except InputError as error:
        if "no usable chunk" not in str(error):
            raise
        return
    assert report.records == sound == report.rows + report.skipped
    assert (report.rows, report.counts.get("unusable_file", 0)) == (frame.height, broken)
    assert report.files == len(files) - broken
    assert frame["chunk_id"].is_unique().all()
    with suppress(InputError):
        load_queries(folder, frame, b"k" * 32)
    if broken:
        with pytest.raises(InputError):
            read_chunks(folder, 8)


@settings(max_examples=FEWER)
@given(records=st.lists(SOUND, min_size=1, max_size=8))
def test_parquet_says_what_jsonl_says(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    texts = [record["text"] for record in records if isinstance(record["text"], str) and record["text"] != "\ud800"]
    rows = [{"id": f"r{n}", "text": text, "page": n} for n, text in enumerate(texts or ["x"])]
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a", "b"):
        (folder / name).mkdir()
    pl.DataFrame(rows).write_parquet(folder / "a" / "x.parquet")
    (folder / "b" / "x.jsonl").write_bytes(as_lines(rows))
    outcomes: list[Any] = []
    for name in ("a", "b"):
        try:
            frame, report = read_chunks(Path(folder / name), 64)
            outcomes.append((frame.drop("source").rows(), dict(report.counts)))
        except InputError as error:
            outcomes.append(error.problem.replace(name, ""))
    assert outcomes[0] == outcomes[1] or all(isinstance(each, str) for each in outcomes)


def as_parquet(records: list[Any]) -> bytes:
    stream = io.BytesIO()
    rows = [{"id": f"r{n}", "text": str(record["text"] or ""), "page": n} for n, record in enumerate(records)]
    clean = [{**row, "text": str(row["text"]).replace("\ud800", "?")} for row in rows]
    pl.DataFrame(clean, schema={"id": pl.String, "text": pl.String, "page": pl.Int64}).write_parquet(stream)
    return stream.getvalue()


@settings(max_examples=FEWER)
@given(
    ending=st.sampled_from([".parquet", ".jsonl.gz", ".jsonl.zst", "_chunks.json.zst"]),
    records=st.lists(SOUND, min_size=1, max_size=20),
    place=st.floats(0, 1, exclude_max=True),
    flipped=st.integers(0, 255),
)
def test_a_damaged_file_is_refused_by_name_or_its_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, ending: str, records: list[Any], place: float, flipped: int
) -> None:
    """``flipped`` 0 cuts the file off at the place, any other value changes bits there."""
    write = as_parquet if ending == ".parquet" else as_list if ending.startswith("_") else as_lines
    content = bytearray(SQUEEZED[next((s for s in (".gz", ".zst") if ending.endswith(s)), "")](write(records)))
    at = int(place * len(content))
    if flipped:
        content[at] ^= flipped
    else:
        del content[at:]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / f"sound{ending}").write_bytes(
        SQUEEZED[next((s for s in (".gz", ".zst") if ending.endswith(s)), "")](write([{"text": "one text"}]))
    )
    (folder / f"f{ending}").write_bytes(bytes(content))
    try:
        frame, report = read_chunks(folder, 8)
    except InputError as refused:
        where = refused.where
        frame, report = read_chunks(folder, 8, skip_broken=True)
        assert (report.rows, report.counts["unusable_file"]) == (1, 1)
        assert where.startswith(f"f{ending}")
    assert report.records == report.rows + report.skipped
    assert report.rows == frame.height
