"""Which file name means which format, and reading a whole collection folder with the right reader.

One collection has one format. Mixed folders are refused rather than read in some order: the usual cause is the same
documents exported twice, which would double every chunk. Naming the format (``chunks.format``) resolves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, find_files
from ensemble_assets.collection.readers.keyed_records import read_beir_file, read_jsonl_file, read_parquet_file
from ensemble_assets.collection.readers.legacy_chunk_files import read_chunk_file
from ensemble_assets.collection.readers.read_report import RawRecord, Tally
from ensemble_assets.collection.readers.walk import visible_files
from ensemble_assets.common.errors import InputError, SettingsError

Reader = Callable[[InputFile, ReadLimits, Tally], Iterator[RawRecord]]


@dataclass(frozen=True)
class InputFormat:
    """A format of chunk files.

    Attributes:
        name: value of the setting ``chunks.format``.
        pattern: file names that mean this format (case-sensitive, in any subfolder).
        read: yields the records of one file.
    """

    name: str
    pattern: str
    read: Reader


FORMATS: Mapping[str, InputFormat] = MappingProxyType(
    {
        known.name: known
        for known in (
            InputFormat("chunk_files", "*_chunks.json", read_chunk_file),
            InputFormat("beir", "corpus.jsonl", read_beir_file),
            InputFormat("jsonl", "*.jsonl", read_jsonl_file),
            InputFormat("parquet", "*.parquet", read_parquet_file),
        )
    }
)
"""The first format whose pattern matches a name is the file's format."""

NOT_CHUNKS = ("queries.*", "qrels.*")
"""Names that the queries reader takes; so is everything below the folder ``qrels``."""

EXPORTED = ("*_qdrant.jsonl", "*_sparse.jsonl", "*_rerank.jsonl")
"""Names that an export writes; met when the output folder is the input folder. Never chunks, but reported."""


def format_of(relative: str) -> str | None:
    """The format that a path (POSIX, relative to the collection) means, or None where it is no chunk file."""
    folder, _, name = relative.rpartition("/")
    if folder.split("/")[0] == "qrels" or _matches(name.lstrip("."), (*NOT_CHUNKS, *EXPORTED)):
        return None
    return next((known.name for known in FORMATS.values() if fnmatchcase(name, known.pattern)), None)


def feeds_collection(relative: str) -> bool:
    """Whether a path (POSIX, relative to the collection) is one of chunks, queries or judgements."""
    folder, _, name = relative.rpartition("/")
    return format_of(relative) is not None or folder.split("/")[0] == "qrels" or _matches(name, NOT_CHUNKS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def holds_chunk_files(folder: Path, *, deep: bool = True) -> bool:
    """Whether a folder has a chunk file, in itself or (``deep``) below; no file is opened.

    Linked folders and sub-folders that cannot be listed count as read: reading the collection says what is wrong there.
    """
    unlisted: list[str] = []
    files = visible_files(folder, deep=deep, unlisted=unlisted)
    return any(format_of(relative) is not None for relative, _ in files) or any(unlisted)


def _is_input(relative: str) -> bool:
    return format_of(relative) is not None or _matches(relative.rpartition("/")[2], EXPORTED)


def chunk_files_in(
    folder: Path, tally: Tally, *, format_name: str | None = None, follow_links: bool = False
) -> tuple[InputFormat, list[InputFile]]:
    """The collection's format and its files in reading order.

    Args:
        folder: the collection's folder.
        tally: counts what is left out.
        format_name: read only this format; None takes the one that is there.
        follow_links: also read what links outside of the folder point to.

    Raises:
        SettingsError: if ``format_name`` is unknown.
        InputError: if there is no chunk file, or there are several formats and none was named.
    """
    if format_name is not None and format_name not in FORMATS:
        raise SettingsError(f"chunks.format: {format_name!r} is not a format; accepted: {', '.join(FORMATS)}")
    if not folder.is_dir():
        raise InputError(folder.name, "is not a folder", "Give the folder that holds the collection's chunk files")
    found: dict[str, list[InputFile]] = {}
    for file in find_files(folder, _is_input, tally, follow_links=follow_links):
        name = format_of(file.path.relative_to(folder).as_posix())
        if name is None:
            tally.note("exported_file", file.source)
        else:
            found.setdefault(name, []).append(file)
    if format_name is None:
        format_name = _only_format(folder, found)
    if format_name not in found:
        expected = ", ".join(known.pattern for known in FORMATS.values())
        raise InputError(folder.name, f"has no {format_name or 'chunk'} files", f"Chunk files are named {expected}")
    for other, files in found.items():
        if other != format_name:
            for file in files:
                tally.note("other_format_ignored", file.source)
    return FORMATS[format_name], found[format_name]


def _only_format(folder: Path, found: Mapping[str, list[InputFile]]) -> str:
    if len(found) > 1:
        seen = "; ".join(f"{name}: {files[0].source}" for name, files in sorted(found.items()))
        raise InputError(
            folder.name,
            f"mixes several formats of chunk files ({seen})",
            "Keep one of them in the folder, or choose one with chunks.format",
        )
    return next(iter(found), "")


def read_records(
    input_format: InputFormat, files: list[InputFile], tally: Tally, limits: ReadLimits | None = None
) -> Iterator[RawRecord]:
    """The records of all files, file after file; holds one file (chunk files), line (JSONL) or slice (Parquet).

    Raises:
        InputError: as the format's reader.
    """
    for file in files:
        tally.files += 1
        yield from input_format.read(file, limits or ReadLimits(), tally)
