"""Recognise the format of chunk files by their names, and read a collection's folder with the right reader.

One collection has one format. A folder with several formats is refused: usually it has the same documents twice, which
would double every chunk. The option ``chunks.format`` chooses one of them. A ``*.json`` of another name than
``*_chunks.json`` is a chunk file only if it has a key ``text``, and no other format is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from ensemble_assets.collection.readers.input_files import (
    CHUNK_FILE_ENDING,
    InputFile,
    ReadLimits,
    files_below,
    find_files,
)
from ensemble_assets.collection.readers.keyed_records import read_beir_file, read_keyed_file
from ensemble_assets.collection.readers.layouts import Role, named, plain_name
from ensemble_assets.collection.readers.legacy_chunk_files import has_text_key, read_chunk_file
from ensemble_assets.collection.readers.read_report import RawRecord, Tally
from ensemble_assets.common.errors import InputError, SettingsError

Reader = Callable[[InputFile, ReadLimits, Tally], Iterator[RawRecord]]


@dataclass(frozen=True)
class InputFormat:
    """A format of chunk files; ``read`` yields their records.

    ``pattern`` fits its file names (case-sensitive, in any sub-folder). A file whose name only fits ``also`` is of this
    format if it looks like it inside.
    """

    pattern: str
    read: Reader
    also: str = ""


FORMATS: Mapping[str, InputFormat] = MappingProxyType(
    {
        "chunk_files": InputFormat(f"*{CHUNK_FILE_ENDING}", read_chunk_file, also="*.json"),
        "beir": InputFormat("corpus.jsonl", read_beir_file),  # and what layouts.named() takes for a corpus
        "jsonl": InputFormat("*.jsonl", read_keyed_file),
        "parquet": InputFormat("*.parquet", read_keyed_file),
    }
)
"""The formats by name, as in option ``chunks.format``. A file has the first format whose pattern matches its name."""

_CHUNK_FILES, _BEIR = "chunk_files", "beir"

_NAMED_SO = "Chunk files are named " + ", ".join(each.pattern for each in FORMATS.values())

NOT_CHUNKS = ("queries.*", "qrels.*")
"""Names of queries and judgements beside those of ``layouts``."""

SUMMARIES = ("chunk_summary.json", "processing_summary.json", "*_processing_summary.json")
"""Names of reports that chunkers and exporters write. They are passed over."""

EXPORTED = (
    *("*_qdrant.jsonl", "*_sparse.jsonl", "*_rerank.jsonl"),
    *("*_metadata.json", "*_texts.json", "*_stats.json"),
)
"""Names of exported files, which occur if the output folder is the input folder. They are reported, never read."""


def format_of(relative: str) -> str | None:
    """Return the format of a path (POSIX, relative to the collection), or None if it is no chunk file."""
    name = plain_name(relative.rpartition("/")[2])
    role = named(relative).role
    if role in (Role.QUERIES, Role.JUDGEMENTS) or _matches(name.lstrip("."), (*NOT_CHUNKS, *EXPORTED, *SUMMARIES)):
        return None
    if role is Role.CORPUS:
        return "beir"
    return next((each for each, kind in FORMATS.items() if _matches(name, (kind.pattern, kind.also))), None)


def feeds_collection(relative: str) -> bool:
    """Return whether a path (POSIX, relative to the collection) holds chunks, queries or judgements."""
    name = plain_name(relative.rpartition("/")[2])
    return format_of(relative) is not None or named(relative).role is not Role.UNKNOWN or _matches(name, NOT_CHUNKS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def holds_chunk_files(folder: Path, *, deep: bool = True) -> bool:
    """Return whether a folder has a chunk file, in itself or (``deep``) below.

    A file is opened only if its name does not tell its content.

    A folder that cannot be listed counts as one with a chunk file: reading the collection then reports the fault.
    """
    unlisted: list[str] = []
    unsure: list[Path] = []
    for relative, path in files_below(folder, deep=deep, unlisted=unlisted):
        if _is_named_so(path.name) and format_of(relative) is not None:
            return True
        if format_of(relative) is not None:
            unsure.append(path)
    return bool(unlisted) or any(map(has_text_key, unsure))


_DOCUMENTS = (".md", ".markdown", ".txt", ".rst", ".html", ".htm", ".csv", ".tsv", ".pdf", ".docx")

_NOT_READ = re.compile(
    r"\.(zip|tar|tgz|gz|zst|7z|rar|bz2|xz|json|xml|ya?ml|xlsx?|ods|db|sqlite|arrow|feather|avro|orc)", re.IGNORECASE
)
"""Endings of files that often hold texts, and that are not read, or not under such names."""

_UNCUT = "Documents must be cut into chunks first: ensemble-assets chunk FOLDER --into corpora/NAME; see docs/inputs.md"


def documents_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the documents that are yet to be cut into chunks, as ``files_below`` does; no queries and judgements."""
    for relative, path in files_below(folder):
        if path.suffix.lower() in _DOCUMENTS and named(relative).role is Role.UNKNOWN:
            yield relative, path


def documents_in(folder: Path) -> str:
    """Count these documents by ending, as in ``12 .md, 3 .txt``. Empty if none are."""
    return _by_ending(path for _, path in documents_below(folder))


def files_left(folder: Path, taken: Container[str]) -> tuple[str, list[str]]:
    """Count the files that are not cut into chunks, by ending, and name those that are taken for queries or judgements.

    ``taken`` are the endings of documents that are cut.
    """
    cut = {relative for relative, path in documents_below(folder) if path.suffix.lower() in taken}
    left = [each for each in files_below(folder) if each[0] not in cut and "/." not in f"/{each[0]}"]
    named_so = [relative for relative, path in left if path.suffix.lower() in taken]
    return _by_ending(path for _, path in left if path.suffix.lower() not in taken), named_so


def _by_ending(paths: Iterable[Path]) -> str:
    counted = Counter(path.suffix.lower() or "without an ending" for path in paths)
    return ", ".join(f"{count} {ending}" for ending, count in counted.most_common())


def why_no_chunks(folder: Path) -> tuple[str, str] | None:
    """Count the documents or archives in a folder without chunk files, and give advice; None if it has neither."""
    if count := documents_in(folder):
        return f"has no chunk files, but {count}", _UNCUT
    others = (path for _, path in files_below(folder) if _NOT_READ.fullmatch(path.suffix))
    if count := _by_ending(path for path in others if not _matches(path.name, (*NOT_CHUNKS, *EXPORTED, *SUMMARIES))):
        return f"has no chunk files, but {count}", f"{_NAMED_SO}; archives have to be unpacked"
    return None


def _is_named_so(name: str) -> bool:
    return _matches(plain_name(name), tuple(kind.pattern for kind in FORMATS.values()))


def _may_be_input(relative: str) -> bool:
    """Whether a path is a chunk file, or a file that is to be named although it is not read."""
    name = relative.rpartition("/")[2]
    return format_of(relative) is not None or _matches(name, (*EXPORTED, "*.json"))


def chunk_files_in(
    folder: Path, tally: Tally, *, format_name: str | None = None, follow_links: bool = False
) -> tuple[InputFormat, list[InputFile]]:
    """Find a collection's format and its files in reading order.

    None for ``format_name`` takes the folder's only format; no chunk file, or several formats, are an ``InputError``.
    An unknown name is a ``SettingsError``. ``follow_links`` also reads the targets of links that lead out of the
    folder.
    """
    if format_name is not None and format_name not in FORMATS:
        raise SettingsError(f"chunks.format: {format_name!r} is not a format; accepted: {', '.join(FORMATS)}")
    if not folder.is_dir():
        raise InputError(folder.name, "is not a folder", "Give the folder that holds the collection's chunk files")
    by_format = _files_by_format(folder, tally, format_name, follow_links)
    if format_name is None and _BEIR in by_format:
        for other in {"jsonl", "parquet"} & set(by_format):
            for file in by_format.pop(other):
                tally.note("beside_the_corpus", file.source)
    if format_name is None and len(by_format) > 1:
        examples = "; ".join(f"{name}: {files[0].source}" for name, files in sorted(by_format.items()))
        raise InputError(
            folder.name,
            f"mixes several formats of chunk files ({examples})",
            "Keep one of them in the folder, or choose one with chunks.format",
        )
    format_name = format_name or next(iter(by_format), "")
    if format_name not in by_format:
        why = None if by_format else why_no_chunks(folder)
        problem, remedy = why or (f"has no {format_name or 'chunk'} files", _NAMED_SO)
        raise InputError(folder.name, problem, remedy)
    for file in (file for other, files in by_format.items() if other != format_name for file in files):
        tally.note("other_format_ignored", file.source)
    return FORMATS[format_name], by_format[format_name]


def _files_by_format(
    folder: Path, tally: Tally, format_name: str | None, follow_links: bool
) -> dict[str, list[InputFile]]:
    """Find the chunk files by format, and count the files that are none."""
    by_format: dict[str, list[InputFile]] = {}
    unsure: list[InputFile] = []
    for file in find_files(folder, _may_be_input, tally, follow_links=follow_links):
        name = format_of(file.path.relative_to(folder).as_posix())
        if name is None:
            tally.note("exported_file" if _matches(file.path.name, EXPORTED) else "no_chunks_inside", file.source)
        elif _is_named_so(file.path.name):
            by_format.setdefault(name, []).append(file)
        elif has_text_key(file.path):
            unsure.append(file)
        else:
            tally.note("no_chunks_inside", file.source)
    if unsure and (set(by_format) <= {_CHUNK_FILES} or format_name == _CHUNK_FILES):
        by_format[_CHUNK_FILES] = by_format.get(_CHUNK_FILES, []) + unsure
    else:
        for file in unsure:
            tally.note("other_format_ignored", file.source)
    return by_format
