"""Show the gates of a bundle as asset checks: one result per gate and collection, all from one step.

Every step is a process of its own, and the gates share their inputs. Each gate can still be run by itself.
"""

from collections.abc import Iterator

import dagster as dg

from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.suite import DESCRIPTIONS
from ensemble_assets.orchestration.asset_frame import collection_checks
from ensemble_assets.orchestration.checks.check_inputs import bundle_results
from ensemble_assets.orchestration.dagster_metadata import admitted_metadata, figures
from ensemble_assets.orchestration.resources import SettingsForm
from ensemble_assets.orchestration.stage_step import failure_words


@collection_checks("bundle_gates", asset="export_bundle", descriptions=DESCRIPTIONS)
def bundle_gates(context: dg.AssetCheckExecutionContext, settings: SettingsForm) -> Iterator[dg.AssetCheckResult]:
    """Give the result of every selected gate on the collection's bundle."""
    wanted = {key.name for key in context.selected_asset_check_keys}
    try:
        for result in bundle_results(context.partition_key, settings.resolved().settings):
            if result.name in wanted:
                yield check_result(result)
    except EnsembleError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    except Exception as error:  # noqa: BLE001 - messages of other libraries may quote a text
        raise dg.Failure(failure_words("checks", error)) from None


def check_result(result: GateResult) -> dg.AssetCheckResult:
    """Show a gate's result in Dagster; its sentences name records and keys, never texts."""
    lines = [f"- {sentence}" for sentence in result.problems]
    notes = [f"- {sentence}" for sentence in result.notes]
    shown = {"details": dg.MetadataValue.md("\n".join(lines))} if lines else {}
    noted = {"notes": dg.MetadataValue.md("\n".join(notes))} if notes else {}
    return dg.AssetCheckResult(
        check_name=result.name,
        passed=result.passed,
        severity=dg.AssetCheckSeverity(result.severity),
        description=result.problems[0] if result.problems else None,
        metadata=admitted_metadata({}, {**figures(result.numbers), **shown, **noted}),
    )
