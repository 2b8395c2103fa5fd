"""Record a failed run in a few lines of JSON: the failed steps and their reasons, without chunk or query text."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from ensemble_assets.common import errors
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.orchestration.jobs import REASON_TAG, TRIGGER_TAG

_SHOWN_STEPS = 20
_SHOWN_CHARACTERS = 500
_AFTER_RETRIES = "RetryRequestedFromPolicy"
"""Dagster's error of a step that was tried again in vain; the cause is the step's own."""


def incident_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, Any]:
    """Make the record of a failed run.

    Reasons are sentences that this package wrote (``dagster.Failure``). Of any other error only the class is named: its
    message may quote the input.
    """
    steps = list(_failed_steps(instance, run.run_id))
    return {
        "schema": 1,
        "run_id": run.run_id,
        "job": run.job_name,
        "collection": run.tags.get("dagster/partition"),
        "trigger": run.tags.get(TRIGGER_TAG, "a person"),
        "asked_because": run.tags.get(REASON_TAG),
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "failed_steps": steps[:_SHOWN_STEPS],
        "more_failed_steps": max(0, len(steps) - _SHOWN_STEPS),
        "process_lost": not steps,
    }


def _failed_steps(instance: dg.DagsterInstance, run_id: str) -> Iterator[dict[str, Any]]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        if entry.dagster_event is not None:
            yield failed_step(entry.dagster_event)


def failed_step(event: dg.DagsterEvent) -> dict[str, Any]:
    """Describe a step's failure: ``step``, the class of the ``error``, and this package's ``reason`` if it gave one."""
    data = event.step_failure_data
    error, ours = data.error, data.user_failure_data
    while error is not None and error.cls_name == _AFTER_RETRIES and error.cause is not None:
        error = error.cause
    name = error.cls_name if error else None
    reason = ours.description if ours and ours.description else None
    if error is not None and reason is None and name is not None and issubclass(_class_of(name), errors.EnsembleError):
        reason = error.message.partition(": ")[2].strip()
    return {"step": event.step_key, "error": name, "reason": reason[:_SHOWN_CHARACTERS] if reason else None}


def _class_of(name: str) -> type:
    """Return this package's error class of a name; ``object`` for any other."""
    named = getattr(errors, name, object)
    return named if isinstance(named, type) else object


def write_incident(folder: Path, incident: dict[str, Any]) -> Path:
    """Store the record as ``<run id>.json``, whole or not at all; return its path."""
    path = folder / f"{incident['run_id']}.json"
    with atomic_write(path) as stream:
        stream.write(json.dumps(incident, indent=1).encode())
    return path


def post(webhook: str, incident: dict[str, Any], seconds: float = 10.0) -> str | None:
    """Send the record as JSON; return the fault in words without the address, or None."""
    if urlsplit(webhook).scheme not in ("http", "https"):
        return "is not an address that begins with http:// or https://"
    body = json.dumps({"text": in_words(incident), "incident": incident}).encode()
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        webhook, data=body, headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"the server answered {error.code}"
    except (OSError, ValueError) as error:
        return f"the server could not be reached ({type(error).__name__})"


def in_words(incident: dict[str, Any]) -> str:
    """Describe the record in one line for a chat."""
    run = f"{incident['job']} of {incident['collection'] or 'several collections'} failed"
    first = next(iter(incident["failed_steps"]), None)
    if first is None:
        return f"{run}: its process was lost"
    return f"{run} in {first['step']}: {first['reason'] or first['error'] or 'no reason was recorded'}"
