"""Find the collections below a folder and name them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.collection.readers.formats import holds_chunk_files
from ensemble_assets.collection.readers.input_files import printable
from ensemble_assets.common.errors import InputError

MAX_NAME_BYTES = 128
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Collection:
    """A folder of chunk files.

    Attributes:
        name: partition key, folder of the bundle, name in telemetry: letters, digits, ``-`` and ``_``.
        alias: the folder's own name.
        folder: its path.
    """

    name: str
    alias: str
    folder: Path


@dataclass(frozen=True)
class Discovered:
    """The sub-folders of ``paths.chunked_dir``.

    Attributes:
        collections: sorted by name.
        without_chunks: own names of the sub-folders without a chunk file.
        refused: one error for every sub-folder with chunk files that is no collection.
    """

    collections: tuple[Collection, ...]
    without_chunks: tuple[str, ...]
    refused: tuple[InputError, ...] = ()


def collection_name(alias: str) -> str:
    """Name the collection in folder ``alias``: ``_`` replaces all but ASCII letters, digits, ``-`` and ``_``.

    Raises:
        InputError: for an empty name, a path, and a name with control characters or more than 128 bytes.
    """
    refused = (
        (not alias.strip(), "is an empty name"),
        (alias.strip() in (".", "..") or "/" in alias or "\\" in alias, "is a path, not the name of one folder"),
        (any(ord(c) < 32 or 127 <= ord(c) < 160 for c in alias), "has control characters"),
        (len(os.fsencode(alias)) > MAX_NAME_BYTES, f"has more than {MAX_NAME_BYTES} bytes"),
    )
    for applies, problem in refused:
        if applies:
            raise InputError(f"collection {printable(alias)[:MAX_NAME_BYTES]!r}", problem, "Rename the folder")
    return _NOT_IN_NAMES.sub("_", alias)


def name_folders(aliases: Iterable[str]) -> tuple[dict[str, str], list[InputError]]:
    """Return the folder name by collection name, and an error for every other folder.

    If two folders get the same name, neither has it.
    """
    by_name: dict[str, list[str]] = {}
    refused: list[InputError] = []
    for alias in aliases:
        try:
            by_name.setdefault(collection_name(alias), []).append(alias)
        except InputError as error:
            refused.append(error)
    for name, same in by_name.items():
        refused += [
            InputError(
                f"collections {printable(same[0])!r} and {printable(alias)!r}",
                f"both get the name {name!r}",
                "Rename one of the folders",
            )
            for alias in same[1:]
        ]
    return {name: same[0] for name, same in by_name.items() if len(same) == 1}, refused


def discover(chunked_dir: Path) -> Discovered:
    """Find the collections below ``chunked_dir``: every sub-folder (or link to one) with chunk files.

    Hidden sub-folders are passed over.

    Raises:
        InputError: as ``survey``, and if a sub-folder with chunk files has a name that is refused or clashes.
    """
    discovered = survey(chunked_dir)
    if discovered.refused:
        raise discovered.refused[0]
    return discovered


def survey(chunked_dir: Path) -> Discovered:
    """Find the collections as ``discover`` does, and return errors of bad names instead of raising them.

    Raises:
        InputError: if ``chunked_dir`` is no folder, cannot be listed, or holds chunk files itself.
    """
    if not chunked_dir.is_dir():
        raise InputError(str(chunked_dir), "is not a folder", "Set paths.chunked_dir to the folder of the collections")
    try:
        entries = sorted(chunked_dir.iterdir())
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(str(chunked_dir), f"cannot be listed ({reason})", "Grant the right to read it") from None
    folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    with_chunks = [path for path in folders if holds_chunk_files(path)]
    if not with_chunks and holds_chunk_files(chunked_dir, deep=False):
        raise InputError(
            str(chunked_dir),
            "holds chunk files itself, where one sub-folder per collection is expected",
            "Give its parent folder and choose it with --collections",
        )
    by_alias = {path.name: path for path in with_chunks}
    names, refused = name_folders(by_alias)
    return Discovered(
        collections=tuple(Collection(name, alias, by_alias[alias]) for name, alias in sorted(names.items())),
        without_chunks=tuple(path.name for path in folders if path.name not in by_alias),
        refused=tuple(refused),
    )


def choose(collections: Sequence[Collection], names: Sequence[str]) -> list[Collection]:
    """Choose collections by name or folder name, each once, in the order of ``names``. Without names: all.

    Raises:
        InputError: for an unknown name; lists the existing ones.
    """
    if not names:
        return list(collections)
    by_name = {c.name: c for c in collections} | {c.alias: c for c in collections}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        there = ", ".join(c.name for c in collections) or "none"
        raise InputError(
            f"collection {printable(unknown[0])!r}", "is not there or has no chunk files", f"There are: {there}"
        )
    return list(dict.fromkeys(by_name[name] for name in names))
