"""The files below a folder that anybody would look at: without hidden ones, through links, each folder once.

What a file is for is the callers' business; nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def visible_files(folder: Path, *, deep: bool = True, unlisted: list[str] | None = None) -> Iterator[tuple[str, Path]]:
    """Every file as (POSIX path relative to ``folder``, path), in no particular order.

    Args:
        folder: where to begin.
        deep: also look into sub-folders.
        unlisted: gets the relative path of every folder that cannot be listed, ``""`` for ``folder`` itself.
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
            entries = list(here.iterdir())
        except OSError:
            if unlisted is not None:
                unlisted.append(prefix)
            continue
        for path in entries:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                waiting.extend([(path, f"{prefix}{path.name}/")] if deep else [])
            else:
                yield prefix + path.name, path
