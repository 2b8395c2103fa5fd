"""Store the seconds that the plain script took for a collection on this machine.

There is one small JSON file per machine, collection content and models, in the baselines folder.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.machine import Host, digest

VERSION = 1
_FOLDER = "sla"


@dataclass(frozen=True)
class ModelSeconds:
    """Seconds of the plain script with one dense model: the median of loading, and each encoding of all texts."""

    slug: str
    fingerprint: str
    load_seconds: float
    encode_seconds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median of encoding, and loading."""
        return self.load_seconds + statistics.median(self.encode_seconds)


@dataclass(frozen=True)
class SlaBaseline:
    """Dense-only seconds of the plain script, one model after another, with their provenance.

    ``content`` is a fingerprint of the collection's chunks in order, ``texts`` their number; ``measured_at`` is ISO
    8601.
    """

    collection: str
    content: str
    texts: int
    host: Host
    models: tuple[ModelSeconds, ...]
    libraries: Mapping[str, str]
    measured_at: str

    @property
    def key(self) -> str:
        """Key of the machine, content and models of the measurement."""
        return baseline_key(self.host, self.content, tuple(model.fingerprint for model in self.models))

    @property
    def seconds(self) -> float:
        """Dense-only time of the plain script, all models."""
        return sum(model.seconds for model in self.models)

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of JSON types."""
        return {"version": VERSION, "seconds": round(self.seconds, 4), **asdict(self)}


def baseline_key(host: Host, content: str, models: tuple[str, ...]) -> str:
    """Name a measurement by its machine, its content and the fingerprints of its dense models in order."""
    return digest([host.fingerprint, content, list(models)])


def content_fingerprint(content_hashes: Iterable[str]) -> str:
    """Hash the chunks' content hashes in order: 32 hex digits."""
    state = hashlib.blake2b(digest_size=16)
    for content_hash in content_hashes:
        state.update(content_hash.encode() + b"\n")
    return state.hexdigest()


def store_baseline(folder: Path, baseline: SlaBaseline) -> Path:
    """Write the baseline, in place of an earlier one for the same machine, content and models."""
    path = folder / _FOLDER / f"{baseline.key}.json"
    with atomic_write(path) as file:
        file.write(json.dumps(baseline.as_json(), indent=2).encode())
    return path


def find_baseline(folder: Path, key: str) -> SlaBaseline | None:
    """Find the baseline of a machine, content and models; None if never measured, ``ArtefactError`` if damaged."""
    path = folder / _FOLDER / f"{key}.json"
    return _read(path) if path.is_file() else None


def baselines(folder: Path) -> list[SlaBaseline]:
    """Read all stored baselines, by file name; damaged files are left out."""
    stored: list[SlaBaseline] = []
    for path in sorted((folder / _FOLDER).glob("*.json")):
        with suppress(ArtefactError):
            stored.append(_read(path))
    return stored


def _read(path: Path) -> SlaBaseline:
    from pydantic import TypeAdapter  # here, since workers import this module and never read a baseline

    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ValueError
        baseline = TypeAdapter(SlaBaseline).validate_python(content)
        _ = baseline.seconds  # refuses a model without a repetition
    except (OSError, ValueError, KeyError, TypeError):  # pydantic's ValidationError is a ValueError
        raise ArtefactError(
            f"{_FOLDER}/{path.name} in the baselines folder: is not a stored baseline of this version. "
            "Measure it again with: ensemble-assets baseline sla"
        ) from None
    return baseline
