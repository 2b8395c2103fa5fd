"""Schedules: stale collections at night; once a week every collection dense-only and then in full, to compare the two.

Stopped until switched on. Which collections are stale is ``staleness``; times and zone are settings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dagster as dg

from ensemble_assets.common.errors import EnsembleError, SettingsError
from ensemble_assets.orchestration.check_results import failed_checks
from ensemble_assets.orchestration.jobs import DENSE_ONLY, RETRIEVAL_BUNDLE, reason_tags
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.pipeline.changed_collections import Seen, look
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.staleness import STAGES, stale_reasons, wanted_now
from ensemble_assets.settings import Settings, resolve

NIGHTLY = "nightly_stale"
WEEKLY = "weekly_parity"

_Evaluation = Iterator[dg.RunRequest | dg.SkipReason]
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def build_schedules(
    settings: Settings, code_versions: Mapping[str, str], checks: Sequence[dg.AssetCheckKey]
) -> list[dg.ScheduleDefinition]:
    """The schedules, in the time zone and at the times that the settings say.

    Args:
        settings: effective values of this process.
        code_versions: of the code location's assets, by name.
        checks: keys of the checks of a bundle.

    Raises:
        SettingsError: for an unknown time zone or a time that is no cron expression.
    """

    def nightly(context: dg.ScheduleEvaluationContext) -> _Evaluation:
        yield from _stale(context, code_versions, checks)

    options = settings.operations
    _require_timezone(options.timezone)
    stale = "Runs collections whose chunks, models or code changed, whose checks failed, or that were left half done."
    twice = "Runs every collection dense-only; the sensor full_after_dense_only then runs it in full."
    return [
        _schedule(NIGHTLY, RETRIEVAL_BUNDLE, ("operations.nightly_cron", options.nightly_cron), options.timezone,
                  nightly, stale),
        _schedule(WEEKLY, DENSE_ONLY, ("operations.weekly_cron", options.weekly_cron), options.timezone, _all, twice),
    ]  # fmt: skip


def _schedule(
    name: str,
    job: str,
    cron: tuple[str, str],
    timezone: str,
    evaluate: Callable[[dg.ScheduleEvaluationContext], _Evaluation],
    description: str,
) -> dg.ScheduleDefinition:
    option, expression = cron
    try:
        return dg.ScheduleDefinition(
            name=name,
            job_name=job,
            cron_schedule=expression,
            execution_timezone=timezone,
            execution_fn=evaluate,
            description=description,
            default_status=dg.DefaultScheduleStatus.STOPPED,
        )
    except dg.DagsterInvalidDefinitionError:
        raise SettingsError(
            f"{option}: {expression!r} is not a time; expected a cron expression such as '0 2 * * *' (every day at two)"
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
) -> _Evaluation:
    settings = resolve().settings
    try:
        seen, wanted = look(settings), wanted_now(settings, code_versions)
    except EnsembleError as error:
        yield dg.SkipReason(str(error))
        return
    names = _known(context, seen)
    failed = failed_checks(context.instance, checks, names)
    store, requested = open_store(settings), 0
    for name in names:
        facts = {asset: store.facts(name, asset) for asset in STAGES}
        reasons = stale_reasons(seen.fingerprints[name], facts, wanted, failed.get(name, ()))
        if reasons and not _under_way(context.instance, name):
            requested += 1
            context.log.info(f"{name}: {', '.join(reasons)}")
            yield _request(context, NIGHTLY, name, reasons)
    if not requested:
        yield dg.SkipReason(f"{len(names)} collections, none is stale")


def _all(context: dg.ScheduleEvaluationContext) -> _Evaluation:
    try:
        names = _known(context, look(resolve().settings))
    except EnsembleError as error:
        yield dg.SkipReason(str(error))
        return
    for name in names:
        yield _request(context, WEEKLY, name, ("comparison",))
    if not names:
        yield dg.SkipReason("there are no collections")


def _known(context: dg.ScheduleEvaluationContext, seen: Seen) -> list[str]:
    """The collections that are there, made known to Dagster; so that schedules work without the sensor."""
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


def _request(
    context: dg.ScheduleEvaluationContext, schedule: str, name: str, reasons: tuple[str, ...]
) -> dg.RunRequest:
    tick = context.scheduled_execution_time.strftime("%Y-%m-%dT%H:%M")
    return dg.RunRequest(run_key=f"{schedule}:{tick}:{name}", partition_key=name, tags=reason_tags(schedule, reasons))
