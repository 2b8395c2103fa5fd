"""The exporter's verdicts on a bundle, kept so that the checks of the same run need not read the same bytes again.

A verdict is taken over only where nothing can have changed since: the run, every byte in the folder, the artefacts that
the bundle was made of and the limits are the same, and the verdict was "passed". Anything else is looked at anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_assets.export.checks.result import GateResult

_TAKEN_OVER = "looked at by the exporter in this run, the files have not changed since"


def circumstances(folder: Path, run_id: str, versions: Iterable[str], limits: object) -> str:
    """64 hex digits over all that a verdict depends on.

    Args:
        folder: of the bundle; every file's name and content counts.
        run_id: the code of one run is the same throughout.
        versions: of the artefacts that the bundle is made of, in a fixed order.
        limits: of the settings; its ``repr`` counts.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode("utf-8", "surrogateescape"))
    digest.update(repr((run_id, list(versions), limits)).encode())
    return digest.hexdigest()


def kept(on: str, results: Iterable[GateResult]) -> dict[str, Any]:
    """Verdicts as JSON types, with what they were reached on (``circumstances``)."""
    return {"on": on, "results": [result.as_json() for result in results]}


def holding(stored: object, on: str) -> dict[str, GateResult]:
    """Those of ``kept``'s verdicts that may be taken over in these circumstances, by gate; none of anything else."""
    if not (isinstance(stored, Mapping) and stored.get("on") == on):
        return {}
    results = [GateResult(**{**one, **{n: tuple(one[n]) for n in ("problems", "notes")}}) for one in stored["results"]]
    return {one.name: replace(one, notes=(*one.notes, _TAKEN_OVER)) for one in results if one.passed}
