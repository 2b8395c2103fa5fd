"""What is too large, locked or damaged is refused in words, and no bytes whatever bring out another error."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import discover
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.common.errors import InputError
from ensemble_assets_tests.collection.readers.folders import lines, nested, read, write


@pytest.mark.parametrize(
    "files",
    [
        {"a_chunks.json": ["x" * 3000]},
        {"a_chunks.json": [{"text": "x", "metadata": {"k": "y" * 3000}}]},
        {"a.jsonl": lines({"text": "x" * 3000})},
        {"corpus.jsonl": lines({"_id": 1, "text": "x" * 3000})},
    ],
)
def test_a_record_above_the_limit_is_an_error(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"(record|line) 1.*more than 2000 bytes.*chunks\.max_record_mb"):
        read(tmp_path / "c", files, limits=ReadLimits(record_bytes=2000))


def test_a_parquet_record_above_the_limit_is_an_error(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["x", "y" * 3000]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, record 2.*more than 2000 bytes"):
        read_chunks(tmp_path, 256, limits=ReadLimits(record_bytes=2000))


def test_a_json_file_above_the_limit_is_an_error_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a_chunks\.json: has more than 1000 bytes.*JSONL"):
        read(tmp_path / "c", {"a_chunks.json": ["x" * 3000]}, limits=ReadLimits(file_bytes=1000))


def test_a_number_too_long_for_json_in_a_line_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl, line 2.*4300 digits"):
        read(tmp_path / "c", {"a.jsonl": '{"text": "x"}\n{"text": "y", "n": ' + "1" * 5000 + "}"})


@contextmanager
def without_privileges() -> Iterator[None]:
    """Acts as an ordinary user where the tests run as root, whom permissions do not bind."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
@pytest.mark.parametrize("locked", ["docs", "docs/a_chunks.json"])
def test_what_may_not_be_read_is_an_error_that_says_so(locked: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), {"docs/a_chunks.json": ["x"]})
        folder.chmod(0o755)
        (folder / locked).chmod(0)
        with without_privileges(), pytest.raises(InputError, match=rf"^{locked}: cannot be read \(Permission denied\)"):
            read_chunks(folder, 256)
        (folder / locked).chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_folder_that_may_not_be_looked_into_stops_no_other(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), {"locked/a_chunks.json": ["x"], "open/a_chunks.json": ["x"], "sub/b/c.json": ["x"]})
        folder.chmod(0o755)
        (folder / "locked").chmod(mode)
        with without_privileges():
            assert [each.name for each in discover(folder).collections] == ["locked", "open"]
            with pytest.raises(InputError, match=r"^locked: cannot be read \(Permission denied\)"):
                read_chunks(folder / "locked", 256)
        (folder / "locked").chmod(0o755)


def test_a_pipe_with_the_name_of_a_chunk_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a_chunks.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_chunks(tmp_path, 256)


JSON_BYTES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(alphabet=st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "metadata", "chunks", "data", "chunk_id", "token_count", "k"]), inner, max_size=4
        )
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
BYTES = st.binary(max_size=200) | JSON_BYTES | st.lists(JSON_BYTES, max_size=4).map(b"\n".join)


@given(content=BYTES, name=st.sampled_from(["a_chunks.json", "a.jsonl", "corpus.jsonl", "a.parquet"]))
def test_any_bytes_are_read_or_refused_with_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = write(tmp_path_factory.mktemp("fuzz"), {name: content})
    with suppress(InputError):
        frame, report = read_chunks(folder, 8)
        assert report.records == frame.height + report.skipped
        assert frame["chunk_id"].is_unique().all()


@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_refused_with_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "a.parquet"
    pl.DataFrame({"id": ["1", "2"], "text": ["one text", "another"]}).write_parquet(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with suppress(InputError):
        frame, report = read_chunks(folder, 8)
        assert report.records == frame.height + report.skipped


def test_the_depth_of_the_caller_does_not_matter(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a_chunks.json": [{"text": "x", "metadata": {"k": nested(60)}}]})

    def deeper(levels: int) -> int:
        return deeper(levels - 1) if levels else read_chunks(folder, 8)[0].height

    assert deeper(sys.getrecursionlimit() // 2) == 1
