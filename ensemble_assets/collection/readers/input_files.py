"""Find the input files below a folder.

Files are sorted as version 4.0 did, because row numbers and point ids follow: ``*_chunks.json`` first, then the others,
each by the parts of the path relative to the folder (``a/x`` before ``a-b/x``). A link that leads out of the folder is
refused. A link to a file or folder that is read anyway is skipped and counted. A dot before a name means nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from ensemble_assets.collection.readers.fields import Fields
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError

CHUNK_FILE_ENDING = "_chunks.json"
"""Ending of the names of version 4.0's chunk files."""

_APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""The first bytes of a file of macOS attributes."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Limits and rules of reading. A record or file above its limit is an error.

    Attributes:
        record_bytes: most bytes of one record: of a JSON line, or of a chunk's text and metadata in UTF-8.
        file_bytes: most bytes of one file that can only be read whole (``*_chunks.json``).
        fields: which fields are text, title, id and metadata.
        refuse_repeated_ids: whether an id with two contents is an error; it gets ``#2`` otherwise.
        prepend_headings: whether a text begins with the headings of its chunk.
        remedy: advice about a record above the limit.
    """

    record_bytes: int = 64_000_000
    file_bytes: int = 2_000_000_000
    fields: Fields = Fields()  # noqa: RUF009 - it cannot change
    refuse_repeated_ids: bool = False
    prepend_headings: bool = False
    remedy: str = "Split the document into chunks, or raise chunks.max_record_mb"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read, and its name in reports and rows."""

    path: Path
    source: str


def printable(name: str) -> str:
    """Return ``name`` with U+FFFD in place of undecodable bytes and control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def files_below(folder: Path, *, deep: bool = True, unlisted: list[str] | None = None) -> Iterator[tuple[str, Path]]:
    """Yield every file as (POSIX path relative to ``folder``, path), in no particular order.

    Links are followed, and each folder is listed once. Files of macOS attributes are left out. ``unlisted`` receives
    the relative path of every folder that cannot be listed; ``""`` stands for ``folder``.
    """
    seen: set[Path] = set()
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        real = here.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = entries_of(here)
        except FileNotFoundError:
            continue
        except OSError:
            if unlisted is not None:
                unlisted.append(prefix)
            continue
        for path in entries:
            if path.is_dir():
                waiting.extend([(path, f"{prefix}{path.name}/")] if deep else [])
            elif not holds_macos_attributes(path):
                yield prefix + path.name, path


def entries_of(folder: Path) -> list[Path]:
    """List a folder, sorted; ``OSError`` also where its entries may be listed but not opened."""
    entries = sorted(folder.iterdir())
    os.stat(f"{folder}/.")  # pathlib leaves the dot out
    return entries


def holds_macos_attributes(path: Path) -> bool:
    """Return whether a file holds the macOS attributes of its neighbour: ``._x`` those of ``x``."""
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE
    except OSError:
        return False


def _reading_order(relative: PurePath) -> tuple[bool, tuple[str, ...]]:
    return (not relative.name.endswith(CHUNK_FILE_ENDING), relative.parts)


def find_files(
    folder: Path, wanted: Callable[[str], bool], tally: Tally, *, follow_links: bool = False
) -> list[InputFile]:
    """Return every file below ``folder`` with an accepted name, in reading order.

    ``wanted`` gets a POSIX path relative to ``folder``, which may itself be a link. A folder that cannot be listed, a
    link that leads nowhere or, without ``follow_links``, out of ``folder``, and an accepted name that is not a regular
    file are an ``InputError``.
    """
    search = _Search(folder, wanted, tally, follow_links)
    files = sorted(search.below(folder), key=lambda file: _reading_order(file.path.relative_to(folder)))
    targets = {file.path.resolve() for file in files if not file.path.is_symlink()}
    unique = []
    for file in files:
        if file.path.is_symlink():
            target = file.path.resolve()
            if target in targets:
                tally.note("repeated_link", file.source)
                continue
            targets.add(target)
        unique.append(file)
    return unique


class _Search:
    """One search below a collection's folder."""

    def __init__(self, folder: Path, wanted: Callable[[str], bool], tally: Tally, follow_links: bool) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.wanted = wanted
        self.tally = tally
        self.follow_links = follow_links
        self.seen = {self.root}

    def below(self, folder: Path) -> Iterator[InputFile]:
        for path in self._entries(folder):
            relative = path.relative_to(self.folder).as_posix()
            source = printable(relative)
            if path.is_symlink() and not self._follows(path, relative, source):
                continue
            if path.is_dir():
                if self._is_new(path, source):
                    yield from self.below(path)
            elif self.wanted(relative):
                if holds_macos_attributes(path):
                    self.tally.note("macos_attributes", source)
                    continue
                try:
                    mode = path.stat().st_mode
                except OSError as error:
                    raise cannot_read(source, error) from None
                if not stat.S_ISREG(mode):
                    raise InputError(source, "is not a regular file", "Remove it or replace it by a file")
                yield InputFile(path, source)

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return entries_of(folder)
        except OSError as error:
            source = printable(folder.relative_to(self.folder).as_posix() if folder != self.folder else folder.name)
            raise cannot_read(source, error, "this folder") from None

    def _follows(self, path: Path, relative: str, source: str) -> bool:
        """Decide whether to follow a link. A dangling link is passed over unless its name is an accepted one."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            if self.wanted(relative):
                raise InputError(
                    source, "is a symbolic link that leads nowhere or in a circle", "Correct or remove it"
                ) from None
            return False
        if not self._is_inside(target) and not self.follow_links and (target.is_dir() or self.wanted(relative)):
            raise InputError(
                source,
                "is a symbolic link that leads out of the collection's folder",
                "Copy the files into the folder, or set chunks.follow_links to true",
            )
        return True

    def _is_new(self, path: Path, source: str) -> bool:
        """Return False for a folder that was listed before or is listed under its own name. This ends every circle."""
        target = path.resolve()
        if target in self.seen or (path.is_symlink() and self._is_inside(target)):
            self.tally.note("repeated_link", source)
            return False
        self.seen.add(target)
        return True

    def _is_inside(self, target: Path) -> bool:
        return target == self.root or self.root in target.parents


def cannot_read(source: str, error: Exception, what: str = "this file") -> InputError:
    """Make the error for a file or folder that cannot be opened, listed or decompressed."""
    number = getattr(error, "errno", None)
    if number:
        return InputError(
            source, f"cannot be read ({os.strerror(number)})", f"Give the user who runs this the right to read {what}"
        )
    return InputError(source, f"cannot be decompressed ({type(error).__name__})", "Copy it again; it may be cut off")
