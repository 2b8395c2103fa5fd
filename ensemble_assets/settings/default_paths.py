"""Default places on disk: the deployment's key, device locks, caches. Path arithmetic; creates nothing."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from ensemble_assets.settings.options import Paths
from ensemble_assets.settings.sources import process_environment

_APP = "ensemble-assets"


def key_file(paths: Paths) -> Path:
    """The key of query hashes: as set, else beside the Dagster instance, else in the user's data folder."""
    if paths.key_file:
        return Path(paths.key_file)
    home = process_environment().get("DAGSTER_HOME")
    return Path(home) / "ensemble_assets.key" if home else Path(platformdirs.user_data_dir(_APP)) / "query.key"


def lock_folder(paths: Paths) -> Path:
    """Device locks: one folder for all users of the machine, so ``TMPDIR``, which differs between them, has no say."""
    return Path(paths.lock_dir or "/tmp/ensemble-assets-leases")  # noqa: S108  # sticky and shared on purpose


def cache_folder(paths: Paths) -> Path:
    """Measured batch sizes, compiled models, downloaded artefacts."""
    return Path(paths.cache_dir) if paths.cache_dir else Path(platformdirs.user_cache_dir(_APP))


def baselines_folder(paths: Paths) -> Path:
    """What was measured or accepted to compare later runs with."""
    return cache_folder(paths) / "baselines"


def artefact_base(paths: Paths) -> str:
    """Stage artefacts: a path or an fsspec URL."""
    return paths.artifacts_dir or str(Path(paths.output_dir) / ".artifacts")
