"""Look for a published artefact without opening it. Commands ask before they import the libraries that read one."""

from __future__ import annotations

from pathlib import Path

CURRENT = "current"
"""File of an asset of a collection that names its current version."""


def may_be_published(base: str, collection: str, asset: str) -> bool:
    """Whether an artefact is there, or its base is a URL, which is not asked."""
    return "://" in base or (Path(base) / collection / asset / CURRENT).is_file()
