"""Gate ``no_raw_queries``: no query, no form of it and no long part of it is in anything that a run wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from ensemble_assets.collection.readers.file_text import UNREADABLE, unpacked
from ensemble_assets.export.checks.bundle_walk import RECORD_FILES, Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.query_leaks.fixed_text import without_number_lists
from ensemble_assets.export.query_leaks.page_text import SEAM, Page
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.query_leaks.query_search import QuerySearch
from ensemble_assets.export.query_leaks.unexpected_text import UnexpectedText

_REMEDY = (
    "Remove the file, find what wrote the text (only ids and keyed hashes may leave the queries artefact) and run again"
)
_BATCH_BYTES = 1 << 20
"""Text gathered before it is searched: the search costs as much per call as for some kilobytes."""

_BLOCK_BYTES = 4 << 20
_NUMBERS_ONLY = {".npy", ".faiss"}
"""Endings of files that hold no text."""

PublicNames = Callable[[], Iterable[str]]
"""Gives names that may stand anywhere, such as chunk ids; a query inside such a name is no leak there."""


@dataclass(frozen=True)
class Place:
    """Something that was written; messages call it ``name``, a file name or a kind of record.

    ``blocks`` gives its bytes, afresh at every call, each block with the given overlap of the one before. Of
    ``structured`` bytes, which are JSON, whole strings are compared.
    """

    name: str
    blocks: Callable[[int], Iterator[bytes]]
    structured: bool = False


def text_place(name: str, parts: Iterable[str]) -> Place:
    """Make a place of texts in memory; no match spans two of them."""
    whole = SEAM.join(parts).encode("utf-8", "surrogatepass")
    return Place(name, lambda overlap: iter((whole,)))


def file_place(path: Path, name: str = "") -> Place:
    """Make a place of a file: of what gzip and zstd packed, and of the texts in Parquet."""
    if path.suffix == ".parquet":
        with suppress(pl.exceptions.PolarsError):  # another file of that name: its bytes are searched
            texts = pl.scan_parquet(path).select(pl.col(pl.String)).collect()
            return text_place(name or path.name, [value for column in texts for value in column.unique().drop_nulls()])
    return Place(name or path.name, lambda overlap: _read(path, overlap), path.suffix in {".json", ".jsonl"})


def page_place(path: Path) -> Place:
    """Make a place of an HTML page."""
    page = Page(path.read_text(encoding="utf-8"))
    return text_place(path.name, ["".join(page.texts), *page.values])


def folder_places(folder: Path, without: Callable[[Path], bool] = lambda path: False) -> Iterator[Place]:
    """Make places of the files below a folder, except the files that ``without`` accepts, and of all files' names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    yield text_place(f"file names in {folder.name}", [path.relative_to(folder).as_posix() for path in files])
    for path in files:
        if not without(path):
            yield file_place(path, path.relative_to(folder).as_posix())


def _read(path: Path, overlap: int) -> Iterator[bytes]:
    """Read a file in blocks of whole lines: half a JSON string would turn the others inside out.

    A line that is longer than a block is cut anywhere.
    """
    with path.open("rb") as stream:
        packed = unpacked(stream)
        if packed is not None:
            with suppress(*UNREADABLE):  # damaged, or of another kind: its bytes are searched too
                yield from _blocks(packed, overlap)
                return
            stream.seek(0)
        yield from _blocks(stream, overlap)


def _blocks(file: BinaryIO, overlap: int) -> Iterator[bytes]:
    rest, searched = b"", 0
    while block := file.read(_BLOCK_BYTES):
        block = rest + block
        end = block.rfind(b"\n", searched) + 1
        if not end and len(block) - searched > _BLOCK_BYTES:
            end = len(block)
        if end:
            yield block[:end]
            start = block.rfind(b"\n", 0, max(0, end - overlap)) + 1
            start = start if end - start <= overlap + _BLOCK_BYTES else end - overlap
            block, searched = block[start:], end - start
        rest = block
    if len(rest) > searched:
        yield rest


def no_raw_queries(queries: Sequence[Query], places: Iterable[Place], public: PublicNames = tuple) -> GateResult:
    """Search every place for every query; a match inside a ``public`` name is no leak."""
    leaks = _Leaks(queries, public)
    leaks.search_places(places)
    return leaks.result()


class NoRawQueries:
    """The gate over a bundle, and over the ``places`` beside it.

    An upload script that is equal to ``script`` is not searched.
    """

    def __init__(
        self,
        walk: Walk,
        queries: Sequence[Query],
        places: Callable[[], Iterable[Place]],
        public: PublicNames,
        script: str = "",
    ) -> None:
        self._bundle = walk.bundle
        self._places = places
        self._unexpected = UnexpectedText(walk.inputs)
        self._script = script
        self._leaks = _Leaks(queries, public)
        self._waiting = {content: bytearray() for content in RECORD_FILES}
        self._last: dict[str, bytes] = {}

    def see(self, row: Row) -> None:
        """Gather the row's text to search."""
        if not self._leaks.queries or row.stated is not None:
            return
        for content, piece in self._unexpected.pieces(row):
            if piece == self._last.get(content):  # most rows leave the same few words
                continue
            self._last[content] = piece
            self._waiting[content] += piece + SEAM.encode()
            if len(self._waiting[content]) >= _BATCH_BYTES:
                self._flush(content)

    def result(self) -> GateResult:
        """Search all other places, and give the result."""
        for content in RECORD_FILES:
            self._flush(content)
        records = {self._bundle.path(content) for content in RECORD_FILES}
        script = self._bundle.path("upload_script.py")
        if self._script and script.is_file() and script.read_text(encoding="utf-8") == self._script:
            records.add(script)
        self._leaks.search_places(
            folder_places(self._bundle.folder, lambda path: path in records or path.suffix in _NUMBERS_ONLY)
        )
        self._leaks.search_places(self._places())
        return self._leaks.result()

    def _flush(self, content: str) -> None:
        self._leaks.search_block(self._bundle.names.file(content), bytes(self._waiting[content]))
        self._waiting[content].clear()


class _Leaks:
    """Searches block after block and remembers in which place which query stands."""

    def __init__(self, queries: Sequence[Query], public: PublicNames) -> None:
        self.queries = queries
        self._search = QuerySearch(queries, public)
        self._strong: dict[str, set[str]] = {}
        self._weak: defaultdict[str, set[str]] = defaultdict(set)
        self._size = 0

    def search_places(self, places: Iterable[Place]) -> None:
        """Search every place from one end to the other."""
        for place in places if self.queries else ():
            for block in place.blocks(self._search.overlap):
                self._size += len(block)
                text = without_number_lists(block) if place.structured else block
                self._strong.setdefault(place.name, set()).update(self._search.leaks_in(text))
                if place.structured:
                    self._weak[place.name] |= self._search.weak_in(text)

    def search_block(self, name: str, block: bytes) -> None:
        """Search a block of a place."""
        self._size += len(block)
        self._strong.setdefault(name, set()).update(self._search.leaks_in(block))

    def result(self) -> GateResult:
        """List the leaks, place by place."""
        findings = Findings("no_raw_queries")
        if not self.queries:
            findings.skip("there are no queries to look for (name their file with --queries)")
            return findings.result(queries=0)
        for name, labels in self._strong.items():
            for label in sorted(labels):
                findings.add(f"{name}: holds the text of query {label}, or a long part of it. {_REMEDY}")
            for label in sorted(self._weak[name] - labels):
                findings.add(f"{name}: a value is the text of query {label}, which is short: perhaps chance", "WARN")
        weak = self._search.weak
        if weak:
            findings.note(
                f"{weak} queries are under three words and 16 bytes: only whole JSON strings were compared with them"
            )
        return findings.result(
            queries=len(self.queries), places=len(self._strong), bytes_searched=self._size, weak_queries=weak
        )
