"""What a run wrote, as places with blocks of bytes to search: folders, files, databases, single texts.

The record files of a bundle hold the chunks' own texts, which may stand there; they are ``remainder``'s business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.bundle_reader import Bundle, open_vectors

_BLOCK = 4 << 20
_BATCH = 1 << 20
SEAM = b"\n_____\n"
_FAISS_HEADER = 45
RECORD_FILES = ("qdrant.jsonl", "sparse.jsonl", "metadata.json", "texts.json")


@dataclass(frozen=True)
class Place:
    """Something that was written.

    Attributes:
        name: what messages call it: a file name or a kind of record.
        blocks: its bytes, afresh at every call; a block ends where a record ends or overlaps the one before.
        structured: whether it is JSON, so that whole strings can be compared.
    """

    name: str
    blocks: Callable[[int], Iterator[bytes]]
    structured: bool = False


def text_place(name: str, parts: Iterable[str]) -> Place:
    """Texts that are in memory; nothing is found across two of them."""
    kept = [part.encode("utf-8", "surrogatepass") for part in parts]
    return Place(name, lambda overlap: batches(iter(kept)))


def file_place(path: Path, name: str = "") -> Place:
    """A whole file; for an SQLite database its cells as well, which may be spread over pages."""
    if path.suffix in {".db", ".sqlite"}:
        return Place(name or path.name, lambda overlap: _cells_and_bytes(path, overlap))
    return Place(name or path.name, lambda overlap: _read(path, overlap), path.suffix in {".json", ".jsonl"})


def folder_places(folder: Path) -> Iterator[Place]:
    """Every file below a folder, and the files' names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    yield text_place(f"file names in {folder.name}", [path.relative_to(folder).as_posix() for path in files])
    for path in files:
        yield file_place(path, path.relative_to(folder).as_posix())


def bundle_places(bundle: Bundle) -> Iterator[Place]:
    """Everything in a bundle folder but its record files."""
    special = {bundle.names.of(content) for content in RECORD_FILES}
    files = sorted(path for path in bundle.folder.rglob("*") if path.is_file() and not path.is_symlink())
    yield text_place("file names of the bundle", [path.relative_to(bundle.folder).as_posix() for path in files])
    for path in files:
        name = path.relative_to(bundle.folder).as_posix()
        if path.suffix == ".npy":
            yield Place(name, partial(_around_array, path))
        elif name == bundle.names.of("index.faiss"):
            yield Place(name, partial(_around_index, bundle, path))
        elif name not in special:
            yield file_place(path, name)


def batches(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to larger ones, so that the search has few calls; nothing is found across a seam."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _BATCH:
            yield SEAM.join(held)
            held, size = [], 0
    if held:
        yield SEAM.join(held)


def _read(path: Path, overlap: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        rest = b""
        while block := file.read(_BLOCK if end is None else min(_BLOCK, max(0, end - file.tell()))):
            yield rest + block
            rest = block[-overlap:]


def _around_array(path: Path, overlap: int) -> Iterator[bytes]:
    """What is in a ``.npy`` file beside its numbers; all of it if it is no array of float32."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            begin = file.tell()
    except (ValueError, OSError):
        yield from _read(path, overlap)
        return
    if dtype != np.float32:
        yield from _read(path, overlap)
        return
    yield from _read(path, overlap, 0, begin)
    yield from _read(path, overlap, begin + int(np.prod(shape)) * 4)


def _around_index(bundle: Bundle, path: Path, overlap: int) -> Iterator[bytes]:
    try:
        size = int(open_vectors(bundle.folder / bundle.names.vectors()).nbytes)
    except ArtefactError:
        size = 0
    yield from _read(path, overlap, 0, _FAISS_HEADER)
    yield from _read(path, overlap, _FAISS_HEADER + size)


def _cells_and_bytes(path: Path, overlap: int) -> Iterator[bytes]:
    yield from _read(path, overlap)
    try:
        yield from batches(_cells(path))
    except sqlite3.Error:
        return  # no database after all; its bytes were searched


def _cells(path: Path) -> Iterator[bytes]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.text_factory = bytes
        names = [row[0].decode() for row in connection.execute("select name from sqlite_master where type = 'table'")]
        for name in names:
            quoted = name.replace('"', '""')
            for row in connection.execute(f'select * from "{quoted}"'):  # noqa: S608 - the name is the database's own
                yield SEAM.join(cell for cell in row if isinstance(cell, bytes))
    finally:
        connection.close()
