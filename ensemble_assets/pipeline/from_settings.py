"""Open the things that the settings name: the artefact store."""

from __future__ import annotations

from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import artefact_base, cache_folder


def open_store(settings: Settings) -> ArtefactStore:
    """The artefact store that the settings name."""
    return artefact_store(
        artefact_base(settings.paths), cache_folder(settings.paths), budget_bytes=settings.device.host_budget_bytes
    )
