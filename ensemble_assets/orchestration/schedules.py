"""Run stale collections at night. The schedule is stopped until someone switches it on.

``pipeline/staleness.py`` decides which collections are stale. Time and zone are settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dagster as dg

from ensemble_assets.common.errors import EnsembleError, SettingsError
from ensemble_assets.common.stages import BUNDLE_ASSETS
from ensemble_assets.orchestration.check_results import failed_checks
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE, reason_tags
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.pipeline.changed_collections import Seen, scan_corpora
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.staleness import stale_reasons, wanted_now
from ensemble_assets.settings import Settings, resolve

NIGHTLY = "nightly_stale"

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def nightly_schedule(
    settings: Settings, code_versions: Mapping[str, str], checks: Sequence[dg.AssetCheckKey]
) -> dg.ScheduleDefinition:
    """Define the nightly schedule, in the time zone and at the time that the settings give."""

    def request_stale(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        yield from _stale(context, code_versions, checks)

    options = settings.operations
    _require_timezone(options.timezone)
    try:
        return dg.ScheduleDefinition(
            name=NIGHTLY,
            job_name=RETRIEVAL_BUNDLE,
            cron_schedule=options.nightly_cron,
            execution_timezone=options.timezone,
            execution_fn=request_stale,
            description="Switch on to run, every night, collections whose chunks, models or code changed, whose checks "
            "failed, or whose last run was interrupted.",
            default_status=dg.DefaultScheduleStatus.STOPPED,
        )
    except dg.DagsterInvalidDefinitionError:
        raise SettingsError(
            f"operations.nightly_cron: {options.nightly_cron!r} is not a time; expected a cron expression such as "
            "'0 2 * * *' (every day at two)"
        ) from None


def _require_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingsError(
            f"operations.timezone: {name!r} is not a time zone; expected a name of the IANA data base, such as UTC or "
            "Europe/Berlin"
        ) from None


def _stale(
    context: dg.ScheduleEvaluationContext, code_versions: Mapping[str, str], checks: Sequence[dg.AssetCheckKey]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    settings = resolve().settings
    try:
        seen, wanted = scan_corpora(settings), wanted_now(settings, code_versions)
    except EnsembleError as error:
        yield dg.SkipReason(str(error))
        return
    names = _add_partitions(context, seen)
    failed = failed_checks(context.instance, checks, names)
    store, requested = open_store(settings), 0
    tick = context.scheduled_execution_time.strftime("%Y-%m-%dT%H:%M")
    for name in names:
        artefacts = {asset: store.peek(name, asset) for asset in BUNDLE_ASSETS}
        reasons = stale_reasons(seen.fingerprints[name], artefacts, wanted, failed.get(name, ()))
        if reasons and not _under_way(context.instance, name):
            requested += 1
            context.log.info(f"{name}: {', '.join(reasons)}")
            yield dg.RunRequest(
                run_key=f"{NIGHTLY}:{tick}:{name}", partition_key=name, tags=reason_tags(NIGHTLY, reasons)
            )
    if not requested:
        yield dg.SkipReason(f"{len(names)} collections, none is stale")


def _add_partitions(context: dg.ScheduleEvaluationContext, seen: Seen) -> list[str]:
    """Add a partition for every collection, so that the schedule works without the sensor; return their names."""
    names = sorted(seen.fingerprints)
    unknown = sorted(set(names) - set(context.instance.get_dynamic_partitions(str(COLLECTIONS.name))))
    if unknown:
        context.instance.add_dynamic_partitions(str(COLLECTIONS.name), unknown)
    for problem in seen.refused:
        context.log.warning(problem)
    return names


def _under_way(instance: dg.DagsterInstance, name: str) -> bool:
    """Whether a run of the collection is queued or running."""
    unfinished = dg.RunsFilter(tags={"dagster/partition": name}, statuses=_UNFINISHED)
    return bool(instance.get_run_records(unfinished, limit=1))
