"""Read from the Dagster instance how the checks of a collection ended last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

_PAGE = 100


def failed_checks(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey], collections: Sequence[str]
) -> dict[str, list[str]]:
    """List by collection the checks that failed with severity ERROR, or never judged the latest materialisation."""
    failed: dict[str, list[str]] = {}
    if not keys or not collections:
        return failed
    storage = instance.event_log_storage
    for info in storage.get_asset_check_partition_info(list(keys), partition_keys=list(collections)):
        if info.partition_key is None:
            continue
        broken = info.latest_execution_status.value == "FAILED"
        if not info.is_current or (broken and _is_error(storage, info.check_key, info.partition_key)):
            failed.setdefault(info.partition_key, []).append(info.check_key.name)
    return failed


def _is_error(storage: Any, key: dg.AssetCheckKey, collection: str) -> bool:
    """Whether the last evaluation for the collection has severity ERROR."""
    cursor = None
    while page := storage.get_asset_check_execution_history(key, limit=_PAGE, cursor=cursor):
        for record in page:
            if record.partition == collection and record.event is not None:
                evaluation: Mapping[str, Any] | Any = record.event.dagster_event.event_specific_data
                severity = getattr(evaluation, "severity", None)
                if severity is not None:
                    return bool(severity == dg.AssetCheckSeverity.ERROR)
        cursor = page[-1].id
    return False
