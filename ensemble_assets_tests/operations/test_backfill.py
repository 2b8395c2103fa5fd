"""A backfill of twenty collections, one of them broken."""

from __future__ import annotations

import pytest

from ensemble_assets_tests.operations.deployment import Deployment, all_finished, by_collection
from ensemble_assets_tests.operations.test_small_deployment import BROKEN
from ensemble_assets_tests.orchestration.pipeline import write_collection

COUNT = 20


@pytest.mark.operations
@pytest.mark.timeout(7200)
def test_nineteen_bundles_are_complete_and_one_failure_is_clear(deployment: Deployment) -> None:
    names = [f"c{number:02}" for number in range(COUNT)]
    for name in names:
        write_collection(deployment.corpora / name, count=6)
    (deployment.corpora / "c07" / "more_chunks.json").write_text(BROKEN)
    with deployment.instance() as instance:
        instance.add_dynamic_partitions("collection", names)
    deployment.dagster(
        "job",
        "backfill",
        "-m",
        deployment.location,
        "-j",
        "retrieval_bundle",
        "--partitions",
        ",".join(names),
        "--noprompt",
    )
    deployment.start_daemon()
    deployment.wait(all_finished(COUNT), 7000, "the end of the backfill")
    with deployment.instance() as instance:
        assert by_collection(instance) == {name: ["FAILURE" if name == "c07" else "SUCCESS"] for name in names}
        deployment.wait(lambda now: deployment.taken_slots(now) == 0, 120, "a free pool")
        [failed] = [r for r in instance.get_run_records() if r.dagster_run.status.value == "FAILURE"]
        errors = [
            entry.dagster_event.step_failure_data.user_failure_data
            for entry in instance.all_logs(failed.dagster_run.run_id)
            if entry.dagster_event and entry.dagster_event.is_step_failure
        ]
    assert ["more_chunks.json, line 2" in str(error.description) for error in errors if error] == [True]
    assert deployment.complete_bundles() == [name for name in names if name != "c07"]
    assert deployment.leftovers() == []
    assert deployment.database_errors() == []
