"""What a run wrote, as places with blocks of bytes to search: bundles, folders, databases, single texts.

In a bundle the chunks' own texts and metadata may stand where v4.0 has them; those values are left out here, value by
value and only where they are what the chunk has, so that the same words under any other key are looked at.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.core.errors import ArtefactError
from ensemble_assets.core.legacy_metadata import enrich
from ensemble_assets.export.gates.reading import Bundle, metadata_items, open_vectors, parse_point, texts
from ensemble_assets.export.inputs import BundleInputs
from ensemble_assets.export.v40 import PREVIEW_CHARACTERS, own_metadata

_BLOCK = 4 << 20
_BATCH = 1 << 20
_SEPARATOR = b"\n_____\n"
_FAISS_HEADER = 45
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


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


def bundle_places(bundle: Bundle, inputs: BundleInputs | None = None) -> Iterator[Place]:
    """Everything in a bundle folder but what v4.0 takes from the chunks.

    Args:
        bundle: the folder.
        inputs: the chunks; without them ``_metadata.json`` and ``_texts.json`` are taken for what the chunks have.
    """
    chunks = _Chunks(bundle, inputs)
    special: dict[str, Callable[[int], Iterator[bytes]]] = {
        bundle.names.of("qdrant.jsonl"): lambda overlap: batches(chunks.points()),
        bundle.names.of("sparse.jsonl"): lambda overlap: batches(chunks.sparse()),
        bundle.names.of("metadata.json"): lambda overlap: batches(chunks.metadata()),
        bundle.names.of("texts.json"): lambda overlap: batches(chunks.texts()),
    }
    files = sorted(path for path in bundle.folder.rglob("*") if path.is_file() and not path.is_symlink())
    yield text_place("file names of the bundle", [path.relative_to(bundle.folder).as_posix() for path in files])
    for path in files:
        name = path.relative_to(bundle.folder).as_posix()
        if name in special:
            yield Place(name, special[name])
        elif path.suffix == ".npy":
            yield Place(name, partial(_around_array, path))
        elif name == bundle.names.of("index.faiss"):
            yield Place(name, partial(_around_index, bundle, path))
        else:
            yield file_place(path, name)


class _Chunks:
    """The record files of a bundle, a row at a time, without what is the chunk's."""

    def __init__(self, bundle: Bundle, inputs: BundleInputs | None) -> None:
        self._bundle = bundle
        self._inputs = inputs
        live = inputs.sparse if inputs else None
        self._vocabulary = frozenset(live.vocabulary) if live else None

    def _owned(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Metadata and text that row by row may stand in the bundle."""
        if self._inputs is None:
            for metadata, text in zip_longest(metadata_items(self._bundle), texts(self._bundle)):
                yield metadata or {}, text if isinstance(text, str) else None
            return
        facts = self._inputs.facts
        for chunk in self._inputs.rows():
            yield enrich(own_metadata(chunk), chunk, facts).metadata, chunk.text

    def points(self) -> Iterator[bytes]:
        lines = self._lines("qdrant.jsonl")
        for line, owned in zip_longest(lines, self._owned()):
            if line is None:
                continue
            metadata, text = owned or ({}, None)
            point = parse_point(line.decode("utf-8", "surrogateescape"))
            if point is None or point.payload is None:
                yield line
                continue
            allowed = dict(metadata)
            if text is not None:
                allowed |= {"text_preview": text[:PREVIEW_CHARACTERS], "full_text_length": len(text)}
            left = self._left_over(point.payload, allowed)
            names = b" ".join(_STRING.findall(point.vectors.encode("utf-8", "surrogateescape")))
            yield _dumped([list(point.keys), point.row if not isinstance(point.row, int) else 0, left]) + b" " + names
            if len(point.keys) > 3:
                yield line[line.rfind(b', "vectors": ') :] if b', "vectors": ' in line else line

    def metadata(self) -> Iterator[bytes]:
        if self._inputs is None:
            return
        try:
            for item, owned in zip_longest(metadata_items(self._bundle), self._owned()):
                yield _dumped(self._left_over(item or {}, (owned or ({}, None))[0]))
        except ArtefactError:
            yield from _read(self._bundle.path("metadata.json"), 1 << 16)

    def texts(self) -> Iterator[bytes]:
        if self._inputs is None:
            return
        try:
            for item, owned in zip_longest(texts(self._bundle), self._owned()):
                if owned is None or item != owned[1]:
                    yield _dumped(item)
        except ArtefactError:
            yield from _read(self._bundle.path("texts.json"), 1 << 16)

    def sparse(self) -> Iterator[bytes]:
        for line, owned in zip_longest(self._lines("sparse.jsonl"), self._owned()):
            if line is None:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                yield line
                continue
            if not isinstance(record, dict):
                yield line
                continue
            echo = (owned or ({}, None))[0].get("sparse_vector")
            yield _dumped(self._vector_left_over(record, echo if isinstance(echo, dict) else {}))

    def _left_over(self, found: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
        left = {key: value for key, value in found.items() if key not in allowed or not _equal(value, allowed[key])}
        vector = left.get("sparse_vector")
        if isinstance(vector, dict):
            echo = allowed.get("sparse_vector")
            left["sparse_vector"] = self._vector_left_over(vector, echo if isinstance(echo, dict) else {})
        return left

    def _vector_left_over(self, vector: dict[str, Any], echo: dict[str, Any]) -> dict[str, Any]:
        """A sparse vector without numbers, the echo's tokens and the vocabulary's tokens."""
        left = {key: value for key, value in vector.items() if key not in {"indices", "values", "id"}}
        tokens, owned = left.get("tokens"), echo.get("tokens")
        if isinstance(tokens, list):
            known = self._vocabulary if self._vocabulary is not None else ()
            rest = [token for token in tokens if not (isinstance(token, str) and (token in known or _is_token(token)))]
            left["tokens"] = [] if tokens == owned else rest
        stats, echoed = left.get("stats"), echo.get("stats")
        if isinstance(stats, dict) and isinstance(echoed, dict):
            left["stats"] = {key: value for key, value in stats.items() if echoed.get(key) != value}
        inner = left.get("sparse_vector")
        if isinstance(inner, dict):
            left["sparse_vector"] = {key: value for key, value in inner.items() if key not in {"indices", "values"}}
        return left

    def _lines(self, content: str) -> Iterator[bytes]:
        with self._bundle.path(content).open("rb") as lines:
            yield from lines


def _is_token(token: str) -> bool:
    """One word or sign, as vocabularies have them; a text is more."""
    return len(token) <= 32 and not any(map(str.isspace, token)) and token.isascii() and token.isalnum()


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def batches(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to larger ones, so that the search has few calls; nothing is found across a seam."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _BATCH:
            yield _SEPARATOR.join(held)
            held, size = [], 0
    if held:
        yield _SEPARATOR.join(held)


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
                yield _SEPARATOR.join(cell for cell in row if isinstance(cell, bytes))
    finally:
        connection.close()
