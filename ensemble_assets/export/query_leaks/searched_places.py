"""Give everything that a run wrote as places with blocks of bytes to search: folders, files, single texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEAM = b"\n_____\n"
"""Stands between two pieces of a block, so that no match spans both."""

_BLOCK_BYTES = 4 << 20
NUMBERS_ONLY = {".npy", ".faiss"}
"""Endings of files that hold no text."""


@dataclass(frozen=True)
class Place:
    """Something that was written.

    Attributes:
        name: what messages call it: a file name or a kind of record.
        blocks: gives its bytes, afresh at every call, each block with the given overlap of the one before.
        structured: whether it is JSON, so that whole strings can be compared.
    """

    name: str
    blocks: Callable[[int], Iterator[bytes]]
    structured: bool = False


def text_place(name: str, parts: Iterable[str]) -> Place:
    """Make a place of texts in memory; no match spans two of them."""
    whole = SEAM.join(part.encode("utf-8", "surrogatepass") for part in parts)
    return Place(name, lambda overlap: iter((whole,)))


def file_place(path: Path, name: str = "") -> Place:
    """Make a place of a file."""
    return Place(name or path.name, lambda overlap: _read(path, overlap), path.suffix in {".json", ".jsonl"})


def folder_places(folder: Path, without: Callable[[Path], bool] = lambda path: False) -> Iterator[Place]:
    """Make places of every file below a folder, and of the files' names.

    Args:
        folder: the folder.
        without: files whose content is left out.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    yield text_place(f"file names in {folder.name}", [path.relative_to(folder).as_posix() for path in files])
    for path in files:
        if not without(path):
            yield file_place(path, path.relative_to(folder).as_posix())


def _read(path: Path, overlap: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        rest = b""
        while block := file.read(_BLOCK_BYTES):
            yield rest + block
            rest = block[-overlap:]
