"""Where artefact versions live: ``<base>/<collection>/<asset>/<version folder>`` and a ``current`` file that names one.

The base is a local folder or any fsspec URL. Stages always write and map local files; with a remote base, publishing
uploads the version and loading downloads it once into a local cache. What is inside a version is ``core.artefacts``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from upath import UPath

from ensemble_assets.artefacts.artefact import INDEX_NAME, Artefact, ArtefactWriter, open_artefact
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError

_CURRENT = "current"
_PUBLISHED = ".published"
_KEPT_VERSIONS = 2


class ArtefactStore:
    """Artefacts by collection and asset.

    Args:
        base: a path or an fsspec URL (``s3://bucket/prefix``, ``memory://x``).
        cache: local folder for the copies of a remote base; unused with a local one.
        grace_seconds: how long a replaced version stays for readers that still hold it.
        budget_bytes: most host memory that one frame of a loaded artefact may take.
    """

    def __init__(self, base: str, cache: Path, grace_seconds: float = 3600.0, budget_bytes: int | None = None) -> None:
        self._grace_seconds = grace_seconds
        self._budget_bytes = budget_bytes
        self._base = UPath(base)
        self._remote = self._base.protocol not in ("", "file", "local")
        self._local = cache / "artefacts" if self._remote else Path(self._base.path).absolute()

    def begin(self, collection: str, asset: str) -> ArtefactWriter:
        """A writer into a fresh version folder; removes what killed processes left of earlier attempts."""
        home = self._local / collection / asset
        home.mkdir(parents=True, exist_ok=True)
        self._sweep(home)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        return ArtefactWriter(home / f"{stamp}-{os.getpid()}-{secrets.token_hex(3)}")

    def working_folder(self, collection: str) -> Path:
        """A local folder for what is kept of a collection between runs; nothing in it is an artefact."""
        return self._local / collection / ".working"

    def publish(self, collection: str, asset: str, artefact: Artefact) -> None:
        """Makes ``artefact`` the current version, in one atomic replacement."""
        name = artefact.folder.name
        if self._remote:
            target = self._base / collection / asset
            for path in sorted(artefact.folder.iterdir(), key=lambda p: p.name == INDEX_NAME):
                (target / name).mkdir(parents=True, exist_ok=True)
                (target / name / path.name).write_bytes(path.read_bytes())
            (target / _CURRENT).write_text(name)
        else:
            home = artefact.folder.parent
            (artefact.folder / _PUBLISHED).touch()
            with atomic_write(home / _CURRENT) as stream:
                stream.write(name.encode())
            self._sweep(home)

    def load(self, collection: str, asset: str) -> Artefact:
        """The current version, verified against its recorded sizes and content hashes.

        Raises:
            ArtefactError: if there is none or it is damaged.
        """
        name = self._current(collection, asset)
        while True:
            try:
                return self._open(collection, asset, name)
            except (ArtefactError, FileNotFoundError):
                # A version may be replaced and swept between reading its name and opening it.
                latest = self._current(collection, asset)
                if latest == name:
                    raise
                name = latest

    def facts(self, collection: str, asset: str) -> dict[str, Any] | None:
        """What the stage recorded of the current version, without looking at its data; None where there is none.

        ``version`` (content hash) and ``folder`` (name of the version folder, which begins with the UTC second at
        which the stage began) are added.
        """
        try:
            name = self._current(collection, asset)
            index = json.loads((self._home(collection, asset) / name / INDEX_NAME).read_text(encoding="utf-8"))
        except (ArtefactError, OSError, ValueError):
            return None
        return {**index["facts"], "version": index["version"], "folder": name}

    def _current(self, collection: str, asset: str) -> str:
        try:
            return str((self._home(collection, asset) / _CURRENT).read_text()).strip()
        except FileNotFoundError:
            raise ArtefactError(
                f"{asset} of collection {collection} was never materialised here. Materialise it first"
            ) from None

    def _open(self, collection: str, asset: str, name: str) -> Artefact:
        folder = self._local / collection / asset / name
        if self._remote and not (folder / INDEX_NAME).is_file():
            self._download(self._home(collection, asset) / name, folder)
        artefact = open_artefact(folder, self._budget_bytes)
        artefact.verify()
        return artefact

    def _home(self, collection: str, asset: str) -> UPath:
        return (self._base if self._remote else UPath(self._local)) / collection / asset

    def exists(self, collection: str, asset: str) -> bool:
        """Whether a version was published."""
        return bool((self._home(collection, asset) / _CURRENT).exists())

    def _download(self, source: UPath, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir(), key=lambda p: p.name == INDEX_NAME):
            with atomic_write(folder / path.name) as stream:
                stream.write(path.read_bytes())

    def _sweep(self, home: Path) -> None:
        """Removes published versions past their grace time, all but the last, and unpublished ones of dead writers."""
        marker = home / _CURRENT
        current = marker.read_text().strip() if marker.is_file() else ""
        folders = sorted(path for path in home.iterdir() if path.is_dir())
        published = [path for path in folders if (path / _PUBLISHED).exists()]
        expired = time.time() - self._grace_seconds
        old = [p for p in published if p.name != current and (p / _PUBLISHED).stat().st_mtime <= expired]
        dead = [path for path in folders if path not in published and not _writer_alive(path)]
        for path in (*old[: max(0, len(old) - _KEPT_VERSIONS + 1)], *dead):
            shutil.rmtree(path, ignore_errors=True)


def _writer_alive(folder: Path) -> bool:
    parts = folder.name.split("-")
    return len(parts) == 3 and parts[1].isdigit() and psutil.pid_exists(int(parts[1]))
