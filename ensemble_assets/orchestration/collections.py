"""From a partition key to the collection's folder, as the settings say where collections lie."""

from __future__ import annotations

from pathlib import Path

from ensemble_assets.core.collections import Collection, choose, discover
from ensemble_assets.settings import Settings


def find_collection(settings: Settings, name: str) -> Collection:
    """The collection of that partition key.

    Raises:
        InputError: if it is not below ``paths.chunked_dir``; lists those that are.
    """
    return choose(discover(Path(settings.paths.chunked_dir)).collections, [name])[0]
