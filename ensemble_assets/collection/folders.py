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
    """A folder of chunk files; ``alias`` is the folder's own name.

    ``name`` is partition key, folder of the bundle and name in telemetry: letters, digits, ``-`` and ``_``.
    """

    name: str
    alias: str
    folder: Path


@dataclass(frozen=True)
class Discovered:
    """The collections below ``paths.chunked_dir``, by name; sub-folders without chunk files; errors of other ones."""

    collections: tuple[Collection, ...]
    without_chunks: tuple[str, ...]
    refused: tuple[InputError, ...] = ()


def collection_name(alias: str) -> str:
    """Name the collection in folder ``alias``: ``_`` replaces all but ASCII letters, digits, ``-`` and ``_``.

    An empty name, a path, control characters and more than 128 bytes are an ``InputError``.
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

    Hidden sub-folders are passed over. A name that is refused or clashes is an ``InputError``.
    """
    discovered = survey(chunked_dir)
    if discovered.refused:
        raise discovered.refused[0]
    return discovered


def survey(chunked_dir: Path) -> Discovered:
    """Find the collections as ``discover`` does, and return errors of bad names instead of raising them.

    A root that cannot be listed, or holds chunk files itself, is an ``InputError``.
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
    """Choose collections by name or folder name, each once, in the order of ``names``. Without names: all."""
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
