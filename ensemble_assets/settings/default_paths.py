"""Compute the places of files on disk: artefacts, journals, locks, caches and the key. Creates nothing."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from ensemble_assets.settings.options import Paths
from ensemble_assets.settings.sources import process_environment

_APP = "ensemble-assets"

ARTIFACTS_FOLDER = ".artifacts"
"""Folder of artefacts and journals, beside the bundles."""

_CHECKOUT_HOME = Path(".dagster_home")
"""The instance that ``make run`` and ``make ui`` make in a checkout."""


def key_file(paths: Paths) -> Path:
    """Return the file of the query hash key: as set, else beside the Dagster instance, else in the user's folder."""
    if paths.key_file:
        return Path(paths.key_file)
    home = process_environment().get("DAGSTER_HOME")
    return _key_beside(Path(home)) if home else Path(platformdirs.user_data_dir(_APP)) / "query.key"


def other_key_files(paths: Paths) -> list[Path]:
    """List the keys of runs with another ``DAGSTER_HOME``, such as those of ``make run``, that are on this machine."""
    places = [_key_beside(home) for home in (dagster_home(), _CHECKOUT_HOME)]
    places.append(Path(platformdirs.user_data_dir(_APP)) / "query.key")
    distinct = dict.fromkeys(path.absolute() for path in places if path.is_file())
    return [path for path in distinct if path != key_file(paths).absolute()]


def _key_beside(home: Path) -> Path:
    return home / "ensemble_assets.key"


def dagster_home() -> Path:
    """Return the folder of the Dagster instance: ``DAGSTER_HOME``, else the one of a checkout."""
    return Path(process_environment().get("DAGSTER_HOME") or _CHECKOUT_HOME)


def lock_folder(paths: Paths) -> Path:
    """Return the folder of the device locks. It is the same for all users, so it does not follow ``TMPDIR``."""
    return Path(paths.lock_dir or "/tmp/ensemble-assets-leases")  # noqa: S108  # sticky and shared on purpose


def cache_folder(paths: Paths) -> Path:
    """Return the folder of measured batch sizes, compiled models and downloaded artefacts."""
    return Path(paths.cache_dir) if paths.cache_dir else Path(platformdirs.user_cache_dir(_APP))


def baselines_folder(paths: Paths) -> Path:
    """Return the folder of measured latency baselines."""
    return cache_folder(paths) / "baselines"


def artefact_base(paths: Paths) -> str:
    """Return the base of the stages' artefacts: a path or an fsspec URL."""
    return paths.artifacts_dir or str(Path(paths.output_dir) / ARTIFACTS_FOLDER)


def journal_folder(output_dir: Path) -> Path:
    """Return the folder of the runs' telemetry journals, given the folder of the bundles."""
    return output_dir / ARTIFACTS_FOLDER / "telemetry"


def incidents_folder(paths: Paths) -> Path:
    """Return the folder of the records of failed runs."""
    return Path(paths.output_dir) / ".incidents"
