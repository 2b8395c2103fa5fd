"""Twelve runs, four at a time, on the SQLite instance; the lease keeps the device exclusive."""

from __future__ import annotations

import itertools

import dagster as dg
import pytest

from ensemble_assets_tests.operations.deployment import Deployment, all_finished, by_collection
from ensemble_assets_tests.orchestration.pipeline import write_collection

COUNT, AT_ONCE = 12, 4


@pytest.mark.operations
@pytest.mark.timeout(7200)
def test_four_runs_at_once_lose_no_slot_and_never_share_the_device(deployment: Deployment) -> None:
    settings = deployment.home / "dagster.yaml"
    shipped = settings.read_text()
    assert "{key: ensemble/trigger, limit: 3}" in shipped
    settings.write_text(shipped.replace("{key: ensemble/trigger, limit: 3}", "{key: ensemble/trigger, limit: 4}"))
    names = [f"c{number:02}" for number in range(COUNT)]
    for name in names:
        write_collection(deployment.corpora / name, count=6)
    deployment.dagster("sensor", "start", "corpora", "-m", deployment.location)
    most = 0

    def watched(instance: dg.DagsterInstance) -> bool:
        nonlocal most
        most = max(most, deployment.statuses(instance)["STARTED"])
        assert deployment.busy_slots(instance) <= 1, "the pool has one slot"
        return all_finished(COUNT)(instance)

    deployment.start_daemon()
    seconds = deployment.wait(watched, 7000, "the end of all runs")
    print(f"{COUNT} runs, at most {most} at once, {seconds:.0f} s")
    assert most == AT_ONCE
    with deployment.instance() as instance:
        assert by_collection(instance) == {name: ["SUCCESS"] for name in names}
        deployment.wait(lambda now: deployment.taken_slots(now) == 0, 120, "a free pool")
    assert deployment.complete_bundles() == names
    assert deployment.leftovers() == []
    assert deployment.database_errors() == []
    leases = deployment.leases()
    assert len(leases) >= 3 * COUNT, "dense, sparse and rerank of every collection held the device"
    for before, after in itertools.pairwise(leases):
        assert before[1] <= after[0], f"{before[2]} and {after[2]} held the device at the same time"
