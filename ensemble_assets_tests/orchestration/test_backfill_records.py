"""A backfill from the UI leaves the same records as single runs: partition, limit, checks and nightly schedule."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.check_results import failed_checks
from ensemble_assets.orchestration.checks import ALL_CHECKS
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.schedules import NIGHTLY
from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection
from ensemble_assets_tests.orchestration.test_operations import tick_of

KEYS = [key for made in ALL_CHECKS for key in made.check_keys]
NAMES = ["broken", "more", "notes"]


def test_a_backfill_with_a_broken_collection(configured: Pipeline, stored: dg.DagsterInstance) -> None:
    write_collection(configured.root / "corpora" / "more", count=6)
    write_collection(configured.root / "corpora" / "broken", count=6)
    (configured.root / "corpora" / "broken" / "more_chunks.json").write_text('[{"text": ]')
    stored.add_dynamic_partitions(str(COLLECTIONS.name), NAMES)
    definitions = build_definitions(computing=configured.computing)
    graph = definitions.resolve_asset_graph()
    job = definitions.resolve_job_def(RETRIEVAL_BUNDLE)
    selected = job.asset_layer.selected_asset_keys
    wanted = {AssetKeyPartitionKey(key, name) for key in selected for name in NAMES}

    for request in build_run_requests_with_backfill_policies(wanted, graph, stored):
        job.execute_in_process(
            partition_key=request.partition_key, tags=dict(request.tags), instance=stored,
            run_config=configured.config(), raise_on_error=False,
        )  # fmt: skip

    runs = stored.get_runs()
    assert sorted(run.tags["dagster/partition"] for run in runs) == NAMES
    assert not any("dagster/asset_partition_range_start" in run.tags for run in runs)
    status = {run.tags["dagster/partition"]: run.status.value for run in runs}
    assert status == {"broken": "FAILURE", "more": "SUCCESS", "notes": "SUCCESS"}
    infos = stored.event_log_storage.get_asset_check_partition_info(KEYS, partition_keys=["more", "notes"])
    assert len(infos) == 2 * len(KEYS)
    assert {info.latest_execution_status.value for info in infos} == {"SUCCEEDED"}
    assert failed_checks(stored, KEYS, ["more", "notes"]) == {}
    asked = tick_of(NIGHTLY, stored, configured)
    assert [request.partition_key for request in asked] == ["broken"]  # type: ignore[union-attr]
