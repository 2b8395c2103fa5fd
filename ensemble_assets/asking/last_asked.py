"""Keep the bundle that was asked last open, for programs that ask one question after the other."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ensemble_assets.asking.searcher import Searcher
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.settings import resolve

_LAST: dict[tuple[Path, int], Searcher] = {}


def searcher_of(bundle: str | PathLike[str]) -> Searcher:
    """Open a bundle, or take the open one if its folder was not exported again since."""
    folder = Path(bundle).resolve()
    manifest = folder / MANIFEST_NAME
    key = (folder, manifest.stat().st_mtime_ns if manifest.is_file() else 0)
    if key not in _LAST:
        made = Searcher(folder, resolve().settings)
        for searcher in _LAST.values():
            searcher.close()
        _LAST.clear()
        _LAST[key] = made
    return _LAST[key]
