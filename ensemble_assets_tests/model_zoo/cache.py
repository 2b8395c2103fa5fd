"""Publish a layout into a Hugging Face cache folder, so that its hub id is found without a network."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ensemble_assets.models.registry import model_spec
from ensemble_assets.models.spec import HubSource
from ensemble_assets_tests.model_zoo.families.layout import Layout


def snapshot_folder(layout: Layout, cache_root: Path) -> Path:
    """Return where the cache keeps the layout's files: below the registry's commit, or a made-up one."""
    source = model_spec(layout.hub_id, layout.kind).source
    assert isinstance(source, HubSource)
    made_up = hashlib.sha1(layout.hub_id.encode(), usedforsecurity=False).hexdigest()
    commit = made_up if source.revision == "main" else source.revision
    return cache_root / f"models--{layout.hub_id.replace('/', '--')}" / "snapshots" / commit


def publish(layout: Layout, cache_root: Path) -> str:
    """Build the layout's files as the snapshot that branch ``main`` points to, and return the hub id.

    A layout that is already there stays as it is.
    """
    snapshot = snapshot_folder(layout, cache_root)
    reference = snapshot.parents[1] / "refs" / "main"
    if not reference.is_file():
        snapshot.mkdir(parents=True, exist_ok=True)
        layout.build(snapshot)
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(snapshot.name)
    return layout.hub_id


@contextlib.contextmanager
def hub_cache(cache_root: Path) -> Iterator[None]:
    """Let this process find hub ids in ``cache_root`` and nowhere else.

    The library reads the environment once, at its import, so its constants are replaced as well.
    """
    from huggingface_hub import constants

    with (
        mock.patch.dict(os.environ, {"HF_HUB_CACHE": str(cache_root), "HF_HUB_OFFLINE": "1"}),
        mock.patch.object(constants, "HF_HUB_CACHE", str(cache_root)),
        mock.patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
        yield
