"""Sensor ``incidents``: record every failed run on disk, and post the record to a webhook if one is named."""

import dagster as dg

from ensemble_assets.orchestration.incidents import incident_of, post, write_incident
from ensemble_assets.settings import resolve
from ensemble_assets.settings.default_paths import incidents_folder
from ensemble_assets.settings.sources import WEBHOOK_VARIABLE


@dg.run_failure_sensor(
    name="incidents",
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=f"Writes a record without texts for every failed run; posts it where {WEBHOOK_VARIABLE} says.",
)
def incidents(context: dg.RunFailureSensorContext) -> None:
    """Write the record before posting it, so that a webhook that does not answer loses nothing."""
    resolved = resolve()
    incident = incident_of(context.instance, context.dagster_run)
    path = write_incident(incidents_folder(resolved.settings.paths), incident)
    context.log.info(f"recorded in {path.name}")
    webhook = resolved.environment.get(WEBHOOK_VARIABLE)
    if webhook:
        problem = post(webhook, incident)
        if problem:
            context.log.error(f"{WEBHOOK_VARIABLE}: {problem}; the record {path.name} is written")
