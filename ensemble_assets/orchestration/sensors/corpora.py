"""Sensor ``corpora``: add a partition for every folder below the corpora root, and run new and changed collections.

``pipeline/changed_collections.py`` decides whether a folder has changed.
"""

import json

import dagster as dg

from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE, reason_tags
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.pipeline.changed_collections import (
    CorporaDiff,
    Seen,
    diff_corpora,
    read_fingerprints,
    scan_corpora,
)
from ensemble_assets.settings import resolve


@dg.sensor(
    job_name=RETRIEVAL_BUNDLE,
    minimum_interval_seconds=30,
    description="Switch on to run collections as their folders are added or changed below paths.chunked_dir.",
)
def corpora(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Ask for one run of every collection whose content was neither read last nor asked for last."""
    settings = resolve().settings
    try:
        seen = scan_corpora(settings)
    except EnsembleError as error:
        return dg.SkipReason(str(error))
    requested = _requested(context.cursor)
    partitions = set(context.instance.get_dynamic_partitions(str(COLLECTIONS.name)))
    # Reading a collection's last fingerprint opens its artefact, so this is done only for collections not asked for.
    unknown = [name for name, now in seen.fingerprints.items() if requested.get(name) != now]
    diff = diff_corpora(seen, read_fingerprints(settings, unknown), requested, partitions)
    for problem in seen.refused:
        context.log.warning(problem)
    if gone := [name for name in diff.removed if name in requested]:  # said once; other partitions had no folder here
        context.log.warning(f"Folders are gone, what was made of them stays: {', '.join(gone)}")
    cursor = json.dumps(dict(sorted(diff.requested.items())))
    if not (diff.new or diff.to_run):
        context.update_cursor(cursor)
        return dg.SkipReason(report(seen, diff))
    requests = [_request(name, diff, seen) for name in diff.to_run]
    added = [COLLECTIONS.build_add_request(list(diff.new))] if diff.new else []
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=added, cursor=cursor)


def report(seen: Seen, diff: CorporaDiff) -> str:
    """Describe the tick in one line: the number of collections, and everything that needs a person."""
    parts = [f"{len(seen.fingerprints)} collections, nothing to run"]
    parts += [f"still being changed: {', '.join(seen.waiting)}"] if seen.waiting else []
    parts += [f"without a folder here: {', '.join(diff.removed)}"] if diff.removed else []
    return ". ".join([*parts, *seen.refused])


def _request(name: str, diff: CorporaDiff, seen: Seen) -> dg.RunRequest:
    reason = "added" if name in diff.added else "changed"
    # There is no run key: content that returns to an earlier state must run again. The cursor prevents repeats.
    return dg.RunRequest(partition_key=name, tags=reason_tags("corpora", (reason,), seen.fingerprints[name]))


def _requested(cursor: str | None) -> dict[str, str]:
    try:
        stored = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in stored.items()} if isinstance(stored, dict) else {}
