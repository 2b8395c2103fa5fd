"""Find the collections below a folder and name them."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_assets.collection.readers.formats import holds_chunk_files, why_no_chunks
from ensemble_assets.collection.readers.input_files import entries_of, printable
from ensemble_assets.common.errors import InputError

MAX_NAME_BYTES = 128


@dataclass(frozen=True)
class Collection:
    """A folder of chunk files; ``alias`` is the folder's own name.

    ``name`` is partition key, folder of the bundle and name in telemetry: letters and digits of any language, ``-``
    and ``_``.
    """

    name: str
    alias: str
    folder: Path


@dataclass(frozen=True)
class Discovered:
    """The collections below ``paths.chunked_dir``, and the errors of other folders, by folder name.

    ``refused`` are folders with chunk files, ``uncut`` folders with documents or archives only.
    """

    collections: tuple[Collection, ...]
    refused: Mapping[str, InputError] = field(default_factory=dict)
    uncut: Mapping[str, InputError] = field(default_factory=dict)


def safe_name(text: str) -> str:
    """Replace every character but letters, digits, ``-`` and ``_`` by ``_``: in ASCII as version 4.0 did."""
    return "".join(c if c.isalnum() or c in "-_" or unicodedata.category(c)[0] == "M" else "_" for c in text)


def collection_name(alias: str) -> str:
    """Name the collection in folder ``alias``, whatever the other folders are called.

    Letters of any language stay readable. Where a character beyond ASCII has to go, six digits of a hash are added, so
    that two such names stay distinct. An empty name, a path, control characters and more than 128 bytes are an
    ``InputError``.
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
    composed = unicodedata.normalize("NFC", alias)
    name = safe_name(composed)
    if all(new == old or old.isascii() for new, old in zip(name, composed, strict=True)):
        return name
    return f"{name}-{hashlib.sha1(os.fsencode(composed), usedforsecurity=False).hexdigest()[:6]}"


def require_name(key: str) -> None:
    """Refuse a partition key that is no collection's name, such as a path typed by hand, as an ``InputError``."""
    if safe_name(key) != key:
        raise InputError(
            f"partition {printable(key)!r}",
            "is no collection's name: those have letters, digits, '-' and '_' only",
            "Delete the partition. The sensor housekeeping adds one for every folder, as my_docs for 'my docs'",
        )


def name_folders(aliases: Iterable[str]) -> tuple[dict[str, str], dict[str, InputError]]:
    """Return the folder name by collection name, and an error for every other folder, by its name.

    Where several folders would get one name, it is given to the folder of exactly this name, or to none.
    """
    by_name: dict[str, list[str]] = {}
    refused: dict[str, InputError] = {}
    for alias in aliases:
        try:
            by_name.setdefault(collection_name(alias), []).append(alias)
        except InputError as error:
            refused[alias] = error
    names = {name: name if name in same else same[0] for name, same in by_name.items() if name in same or not same[1:]}
    for name, same in by_name.items():
        for alias in same:
            if names.get(name) != alias:
                other = next(each for each in (names.get(name, alias), *same) if each != alias)
                refused[alias] = InputError(
                    f"collection {printable(alias)!r}",
                    f"it and the folder {printable(other)!r} both get the name {name!r}",
                    "Rename one of the folders",
                )
    return names, refused


def discover(chunked_dir: Path) -> Discovered:
    """Find the collections below ``chunked_dir``: every sub-folder (or link to one) with chunk files.

    Hidden sub-folders are passed over. A folder that is no collection does not stop the others. A root that cannot be
    listed, or holds chunk files itself, is an ``InputError``.
    """
    if not chunked_dir.is_dir():
        raise InputError(str(chunked_dir), "is not a folder", "Set paths.chunked_dir to the folder of the collections")
    try:
        entries = entries_of(chunked_dir)
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
    uncut = {
        path.name: InputError(f"collection {printable(path.name)!r}", *why)
        for path in folders
        if path not in with_chunks and (why := why_no_chunks(path))
    }
    if uncut and not with_chunks:
        raise next(iter(uncut.values()))
    by_alias = {path.name: path for path in with_chunks}
    names, refused = name_folders(by_alias)
    return Discovered(
        collections=tuple(Collection(name, alias, by_alias[alias]) for name, alias in sorted(names.items())),
        refused=refused,
        uncut=uncut,
    )


def choose(discovered: Discovered, names: Sequence[str]) -> list[Collection]:
    """Choose collections by name or folder name, each once, in the order of ``names``. Without names: all.

    An unknown name and a folder that is refused are an ``InputError``.
    """
    collections = discovered.collections
    by_name = {c.name: c for c in collections} | {c.alias: c for c in collections}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        if error := {**discovered.refused, **discovered.uncut}.get(unknown[0]):
            raise error
        there = ", ".join(c.name for c in collections) or "none"
        raise InputError(
            f"collection {printable(unknown[0])!r}", "is not there or has no chunk files", f"There are: {there}"
        )
    return list(dict.fromkeys(by_name[name] for name in names)) if names else list(collections)
