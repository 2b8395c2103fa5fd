"""Keep artefact versions in ``<base>/<collection>/<asset>/<version folder>``, with a file ``current`` that names one.

The base is a local folder or any fsspec URL. Stages write and map local files; a remote base has copies of them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from upath import UPath

from ensemble_assets.artefacts.artefact import INDEX_NAME, Artefact, ArtefactWriter, open_artefact
from ensemble_assets.artefacts.published import CURRENT
from ensemble_assets.common.atomic_files import atomic_folder, atomic_write
from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.common.machine import digest, process_began

_PUBLISHED = ".published"
"""Marks a version folder that is whole. A remote one holds the time of its publication, in seconds since the epoch."""

_KEPT_VERSIONS = 2
"""Versions that stay after a sweep: the current one and the one before it."""

_UPLOAD_SECONDS = 86_400.0
"""A remote version folder older than this and without ``_PUBLISHED`` belongs to an upload that was killed."""

_STAMP = "%Y%m%dT%H%M%S"
"""First part of a version folder's name: UTC time at which its stage began."""


class ArtefactStore:
    """Artefacts by collection and asset.

    Args:
        folder: local folder of the version folders. With a remote base it holds copies.
        grace_seconds: a replaced version stays this long for readers that still use it.
        budget_bytes: most host memory that one frame of a loaded artefact may take.
        remote: base of the published versions; None publishes in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        grace_seconds: float = 3600.0,
        budget_bytes: int | None = None,
        remote: UPath | None = None,
    ) -> None:
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._budget_bytes = budget_bytes
        self._remote = remote

    def begin(self, collection: str, asset: str) -> ArtefactWriter:
        """Open a new version folder for writing. Remove the folders of earlier writers that were killed."""
        home = self._folder / collection / asset
        home.mkdir(parents=True, exist_ok=True)
        _remove_dead(home)
        stamp = datetime.now(UTC).strftime(_STAMP)
        return ArtefactWriter(home / f"{stamp}-{os.getpid()}-{secrets.token_hex(3)}")

    def working_folder(self, collection: str) -> Path:
        """Return the local folder for data of a collection that stays between runs. It holds no artefacts."""
        return self._folder / collection / ".working"

    def publish(self, collection: str, asset: str, artefact: Artefact) -> None:
        """Make ``artefact`` the current version in one atomic replacement, then remove versions past their time."""
        name, local, home = artefact.folder.name, artefact.folder.parent, self._home(collection, asset)
        if self._remote is None:
            (artefact.folder / _PUBLISHED).touch()
            with atomic_write(local / CURRENT) as stream:
                stream.write(name.encode())
            self._sweep_local(local, name)
            return
        (home / name).mkdir(parents=True, exist_ok=True)
        for path in sorted(artefact.folder.iterdir(), key=lambda p: p.name == INDEX_NAME):  # the index last
            (home / name / path.name).write_bytes(path.read_bytes())
        (home / name / _PUBLISHED).write_text(repr(time.time()), encoding="utf-8")
        (home / CURRENT).write_text(name, encoding="utf-8")
        (artefact.folder / _PUBLISHED).touch()
        self._sweep_local(local, name)
        with suppress(OSError):  # a base that forbids deletion keeps its versions; the run has succeeded
            self._sweep_remote(home, name)

    def load(self, collection: str, asset: str) -> Artefact:
        """Return the current version, verified by its content hashes; ``ArtefactError`` if it is missing or damaged."""
        name = self._current(collection, asset)
        while True:
            try:
                artefact = open_artefact(self._local_version(collection, asset, name), self._budget_bytes)
                artefact.verify()
                return artefact
            except (ArtefactError, FileNotFoundError):
                # A version may be replaced and swept between reading its name and opening it.
                latest = self._current(collection, asset)
                if latest == name:
                    raise
                name = latest

    def peek(self, collection: str, asset: str) -> Artefact | None:
        """Return the current version for its record alone; None if there is none or it cannot be read.

        Its data is not verified, and with a remote base it may not be on this machine.
        """
        try:
            name = self._current(collection, asset)
            index = json.loads((self._home(collection, asset) / name / INDEX_NAME).read_text(encoding="utf-8"))
            artefact = Artefact(self._folder / collection / asset / name, index)
            _ = artefact.record  # parsed once and kept
        except (ArtefactError, OSError, ValueError):
            return None
        return artefact

    def exists(self, collection: str, asset: str) -> bool:
        """Return whether a version was published."""
        return (self._home(collection, asset) / CURRENT).exists()

    def _home(self, collection: str, asset: str) -> UPath:
        """Return the folder that holds ``current`` and the published versions."""
        base = UPath(self._folder) if self._remote is None else self._remote
        return base / collection / asset

    def _current(self, collection: str, asset: str) -> str:
        try:
            return (self._home(collection, asset) / CURRENT).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise ArtefactError(
                f"{asset} of collection {collection} was never materialised here. "
                "Run the collection first, or name the folder that it was run into"
            ) from None

    def _local_version(self, collection: str, asset: str, name: str) -> Path:
        """Return the local folder of a published version, downloaded if only the remote base has it."""
        folder = self._folder / collection / asset / name
        if self._remote is None or (folder / _PUBLISHED).is_file():
            return folder
        source = self._home(collection, asset) / name
        if not (source / INDEX_NAME).is_file():
            raise ArtefactError(f"{asset} of collection {collection}: version {name} is gone. Materialise it again")
        with atomic_folder(folder) as copy:
            for path in source.iterdir():
                (copy / path.name).write_bytes(path.read_bytes())
            (copy / _PUBLISHED).touch()
        self._sweep_local(folder.parent, name)
        return folder

    def _sweep_local(self, home: Path, current: str) -> None:
        """Remove local version folders whose grace time is over."""
        published: dict[str, float] = {}
        for path in home.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):  # not published, or just swept by another process
                published[path.name] = (path / _PUBLISHED).stat().st_mtime
        for name in self._expired(published, current):
            shutil.rmtree(home / name, ignore_errors=True)

    def _sweep_remote(self, home: UPath, current: str) -> None:
        """Remove remote version folders whose grace time is over, and those of uploads that were killed."""
        published: dict[str, float] = {}
        for folder in home.iterdir():
            if not folder.is_dir() or folder.name == current:
                continue
            marker = folder / _PUBLISHED
            if marker.exists():
                published[folder.name] = float(marker.read_text(encoding="utf-8"))
            elif _began_at(folder.name) < time.time() - _UPLOAD_SECONDS:
                folder.fs.rm(folder.path, recursive=True)
        for name in self._expired(published, current):
            home.fs.rm((home / name).path, recursive=True)

    def _expired(self, published: Mapping[str, float], current: str) -> list[str]:
        """Return the names of replaced versions past their grace time, without the newest ``_KEPT_VERSIONS - 1``.

        ``published`` has the time of publication by name, in seconds since the epoch.
        """
        cutoff = time.time() - self._grace_seconds
        replaced = sorted(name for name, at in published.items() if name != current and at <= cutoff)
        return replaced[: max(0, len(replaced) - (_KEPT_VERSIONS - 1))]


def artefact_store(
    base: str, cache: Path, grace_seconds: float = 3600.0, budget_bytes: int | None = None
) -> ArtefactStore:
    """Open the store of a base: a path or an fsspec URL (``s3://bucket/prefix``, ``memory://x``).

    ``cache`` is the local folder for copies of a remote base. A URL of no known kind, or one whose package is not
    installed, is a ``SettingsError``.
    """
    try:
        place = UPath(base)
        _ = place.fs  # imports the package of the URL's kind
    except (ValueError, ImportError) as error:
        raise SettingsError(
            f"paths.artifacts_dir: {base} cannot be opened ({error}). Name a folder, or a URL of a kind that fsspec "
            "knows, and install the package of that kind"
        ) from None
    if place.protocol in ("", "file", "local"):
        return ArtefactStore(Path(place.path).absolute(), grace_seconds, budget_bytes)
    # Other machines publish too, so a listing from a moment ago may be wrong.
    remote = UPath(base, use_listings_cache=False)
    # A folder per base: copies of one base must not count as replaced versions of another.
    return ArtefactStore(cache / "artefacts" / digest(str(remote)), grace_seconds, budget_bytes, remote)


def _remove_dead(home: Path) -> None:
    """Remove version folders without ``_PUBLISHED`` whose writing process is dead."""
    for path in home.iterdir():
        parts = path.name.split("-")
        hidden = path.name.startswith(".")  # a copy that is being downloaded; it has the name of another host's process
        if hidden or len(parts) != 3 or not path.is_dir() or (path / _PUBLISHED).exists():
            continue
        if not (parts[1].isdigit() and process_began(int(parts[1])) is not None):
            shutil.rmtree(path, ignore_errors=True)


def _began_at(name: str) -> float:
    """Return the time in a version folder's name, in seconds since the epoch; infinity for any other name."""
    try:
        return datetime.strptime(name.partition("-")[0], _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return float("inf")
