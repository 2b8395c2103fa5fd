"""Store the accepted quality of a collection in a small text file that can be committed and reviewed.

The file has a value per query, since runs are compared query by query. It names queries by their public ids only.
``retrieval/evaluation.py`` measures, ``retrieval/quality_verdicts.py`` compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError

VERSION = 1
_DIGITS = 6


@dataclass(frozen=True)
class QualityBaseline:
    """The accepted quality of one collection, with its provenance.

    Attributes:
        judged: whether the judgements came from a file; False: known-item probes.
        accepted_at: ISO 8601 date and time.
        means: by run and measure.
        per_query: value of ``measure`` per run and public id.
        provenance: versions, models with fingerprints, settings, artefact versions, run.
    """

    collection: str
    judged: bool
    accepted_at: str
    measure: str
    means: Mapping[str, Mapping[str, float]]
    per_query: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any]

    def values(self, run: str) -> pl.DataFrame:
        """Give the frame ``public_id, value`` of one run; it is empty if the baseline lacks the run."""
        values = self.per_query.get(run, {})
        schema = {"public_id": pl.String(), "value": pl.Float64()}
        return pl.DataFrame({"public_id": list(values), "value": list(values.values())}, schema=schema)


def baseline_path(folder: Path, collection: str) -> Path:
    """Name the file of a collection's baseline."""
    return folder / f"{collection}.quality.json"


def write_quality_baseline(folder: Path, baseline: QualityBaseline) -> Path:
    """Write the baseline in place of the earlier one; one query a line, so that a review shows the changed queries."""
    path = baseline_path(folder, baseline.collection)
    runs = list(baseline.per_query)
    queries = list(baseline.per_query[runs[0]]) if runs else []
    head = {
        "version": VERSION,
        "collection": baseline.collection,
        "judgements": "file" if baseline.judged else "derived",
        "accepted_at": baseline.accepted_at,
        "measure": baseline.measure,
        "means": {run: {name: round(v, _DIGITS) for name, v in means.items()} for run, means in baseline.means.items()},
        "provenance": dict(baseline.provenance),
        "runs": runs,
    }
    rows = [
        f"  {json.dumps(query)}: {json.dumps([round(baseline.per_query[run][query], _DIGITS) for run in runs])}"
        for query in queries
    ]
    text = json.dumps(head, indent=1, ensure_ascii=False)
    body = ",\n".join(rows)
    with atomic_write(path) as stream:
        stream.write(f'{text[:-2]},\n "per_query": {{\n{body}\n }}\n}}\n'.encode())
    return path


def read_quality_baseline(folder: Path, collection: str) -> QualityBaseline | None:
    """Read the accepted baseline of a collection; None if none was accepted, ``ArtefactError`` if it is damaged."""
    path = baseline_path(folder, collection)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION or content["judgements"] not in ("file", "derived"):
            raise ValueError
        runs = [str(run) for run in content["runs"]]
        rows = {str(query): [float(v) for v in values] for query, values in content["per_query"].items()}
        if any(len(values) != len(runs) for values in rows.values()):
            raise ValueError
        return QualityBaseline(
            collection=str(content["collection"]),
            judged=content["judgements"] == "file",
            accepted_at=str(content["accepted_at"]),
            measure=str(content["measure"]),
            means={run: dict(means) for run, means in content["means"].items()},
            per_query={run: {query: values[i] for query, values in rows.items()} for i, run in enumerate(runs)},
            provenance=dict(content["provenance"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtefactError(
            f"{path.name}: is not an accepted baseline of version {VERSION}. Restore it from version control, or "
            "accept a new one with: ensemble-assets baseline accept BUNDLE"
        ) from None
