"""Recognise the format of chunk files by their names, and read a collection's folder with the right reader.

One collection has one format. A folder with several formats is refused: usually it has the same documents twice, which
would double every chunk. The option ``chunks.format`` chooses one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, find_files, visible_files
from ensemble_assets.collection.readers.keyed_records import read_beir_file, read_jsonl_file, read_parquet_file
from ensemble_assets.collection.readers.legacy_chunk_files import read_chunk_file
from ensemble_assets.collection.readers.read_report import RawRecord, Tally
from ensemble_assets.common.errors import InputError, SettingsError

Reader = Callable[[InputFile, ReadLimits, Tally], Iterator[RawRecord]]


@dataclass(frozen=True)
class InputFormat:
    """A format of chunk files.

    Attributes:
        pattern: file names of this format (case-sensitive, in any sub-folder).
        read: yields the records of one file.
    """

    pattern: str
    read: Reader


FORMATS: Mapping[str, InputFormat] = MappingProxyType(
    {
        "chunk_files": InputFormat("*_chunks.json", read_chunk_file),
        "beir": InputFormat("corpus.jsonl", read_beir_file),
        "jsonl": InputFormat("*.jsonl", read_jsonl_file),
        "parquet": InputFormat("*.parquet", read_parquet_file),
    }
)
"""The formats by name, as in option ``chunks.format``. A file has the first format whose pattern matches its name."""

NOT_CHUNKS = ("queries.*", "qrels.*")
"""Names of queries and judgements; everything below the folder ``qrels`` counts too."""

EXPORTED = ("*_qdrant.jsonl", "*_sparse.jsonl", "*_rerank.jsonl")
"""Names of exported files, which occur if the output folder is the input folder. They are reported, never read."""


def format_of(relative: str) -> str | None:
    """Return the format of a path (POSIX, relative to the collection), or None if it is no chunk file."""
    folder, _, name = relative.rpartition("/")
    if folder.split("/")[0] == "qrels" or _matches(name.lstrip("."), (*NOT_CHUNKS, *EXPORTED)):
        return None
    return next((each for each, kind in FORMATS.items() if fnmatchcase(name, kind.pattern)), None)


def feeds_collection(relative: str) -> bool:
    """Return whether a path (POSIX, relative to the collection) holds chunks, queries or judgements."""
    folder, _, name = relative.rpartition("/")
    return format_of(relative) is not None or folder.split("/")[0] == "qrels" or _matches(name, NOT_CHUNKS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def holds_chunk_files(folder: Path, *, deep: bool = True) -> bool:
    """Return whether a folder has a chunk file, in itself or (``deep``) below. No file is opened.

    A sub-folder that cannot be listed counts as one with a chunk file: reading the collection then reports the fault.
    """
    unlisted: list[str] = []
    files = visible_files(folder, deep=deep, unlisted=unlisted)
    return any(format_of(relative) is not None for relative, _ in files) or any(unlisted)


def _is_input(relative: str) -> bool:
    return format_of(relative) is not None or _matches(relative.rpartition("/")[2], EXPORTED)


def chunk_files_in(
    folder: Path, tally: Tally, *, format_name: str | None = None, follow_links: bool = False
) -> tuple[InputFormat, list[InputFile]]:
    """Find a collection's format and its files in reading order.

    Args:
        folder: the collection's folder.
        tally: counts the files that are left out.
        format_name: read only this format; None takes the folder's only format.
        follow_links: also read the targets of links that lead out of the folder.

    Raises:
        SettingsError: if ``format_name`` is unknown.
        InputError: if there is no chunk file, or there are several formats and none was named.
    """
    if format_name is not None and format_name not in FORMATS:
        raise SettingsError(f"chunks.format: {format_name!r} is not a format; accepted: {', '.join(FORMATS)}")
    if not folder.is_dir():
        raise InputError(folder.name, "is not a folder", "Give the folder that holds the collection's chunk files")
    by_format: dict[str, list[InputFile]] = {}
    for file in find_files(folder, _is_input, tally, follow_links=follow_links):
        name = format_of(file.path.relative_to(folder).as_posix())
        if name is None:
            tally.note("exported_file", file.source)
        else:
            by_format.setdefault(name, []).append(file)
    if format_name is None and len(by_format) > 1:
        examples = "; ".join(f"{name}: {files[0].source}" for name, files in sorted(by_format.items()))
        raise InputError(
            folder.name,
            f"mixes several formats of chunk files ({examples})",
            "Keep one of them in the folder, or choose one with chunks.format",
        )
    format_name = format_name or next(iter(by_format), "")
    if format_name not in by_format:
        expected = ", ".join(each.pattern for each in FORMATS.values())
        raise InputError(folder.name, f"has no {format_name or 'chunk'} files", f"Chunk files are named {expected}")
    for file in (file for other, files in by_format.items() if other != format_name for file in files):
        tally.note("other_format_ignored", file.source)
    return FORMATS[format_name], by_format[format_name]


def read_records(
    input_format: InputFormat, files: list[InputFile], tally: Tally, limits: ReadLimits | None = None
) -> Iterator[RawRecord]:
    """Read the records of all files, one file after the other.

    In memory is one file (chunk files), one line (JSONL) or one slice of rows (Parquet).

    Raises:
        InputError: as the format's reader.
    """
    for file in files:
        tally.files += 1
        yield from input_format.read(file, limits or ReadLimits(), tally)
