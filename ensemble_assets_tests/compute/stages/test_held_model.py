"""Holding a model: one lease, one load, as many runs as wanted; given back at the end whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.batching.table_result import TableResult, merge_results
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets_tests.compute.running.doubles import LOGIT, DoubleFactory, DoubleForward, Journal, faults, table_of


class Leases:
    """Counts what is taken and given back."""

    def __init__(self, devices: Lease | None = None) -> None:
        self.devices, self.taken, self.given = devices or Lease((CpuDevice(),)), 0, 0

    @contextmanager
    def __call__(self, *, model: str, stage: str) -> Iterator[Lease]:
        self.taken += 1
        try:
            yield self.devices
        finally:
            self.given += 1


class Releasing(DoubleForward):
    """Counts how often its memory was given back."""

    released = 0

    def release(self) -> None:
        self.released += 1


class ReleasingFactory(DoubleFactory):
    """Remembers the forward that it made."""

    def load(self, device: str) -> Releasing:
        super().load(device)
        object.__setattr__(self, "made", Releasing(self))
        return self.made  # type: ignore[attr-defined]

    def unload(self, forward: Releasing) -> None:
        forward.release()


@pytest.fixture
def spec(tmp_path):
    from ensemble_assets_tests.compute.running.doubles import model_folder

    return model_folder(tmp_path / "m", "rerank")


TABLE = table_of([[1, 6, 2], [1, 7, 8, 2]])


def test_several_runs_share_one_lease_and_one_loaded_model_and_give_what_one_run_gives(spec) -> None:
    leases, journal = Leases(), Journal()
    factory = ReleasingFactory(LOGIT, journal=journal)
    context = ComputeContext(lease=leases)
    with hold(context, "rerank", spec, factory) as held:
        first, second = held.run(TABLE), held.run(TABLE)
        assert not held.round_trips
        assert factory.made.released == 0, "nobody but the holder releases"  # type: ignore[attr-defined]
    assert (leases.taken, leases.given, len(journal.loaded)) == (1, 1, 1)
    assert factory.made.released == 1  # type: ignore[attr-defined]
    with hold(context, "rerank", spec, DoubleFactory(LOGIT)) as held:
        alone = held.run(TABLE)
    for result in (first, second):
        np.testing.assert_array_equal(result.outputs["logit"], alone.outputs["logit"])
        assert result.precision == "fp16", "the model's own facts are seen through the wrapper"
    assert merge_results([first, second]).tokens == 2 * alone.tokens


def test_rows_that_are_not_finite_are_done_again_in_fp32_here_too(spec) -> None:
    factory = DoubleFactory(LOGIT, faults(nan="storm"))
    from ensemble_assets_tests.compute.running.doubles import IDS

    with hold(ComputeContext(), "rerank", spec, factory) as held:
        result = held.run(table_of([[IDS["storm"]], [IDS["wind"]]]))
    assert result.precision_redone == 1
    assert not result.failed_rows


def test_the_lease_and_the_model_are_given_back_after_an_error(spec) -> None:
    leases = Leases()
    factory = ReleasingFactory(LOGIT)

    def fail() -> None:
        with hold(ComputeContext(lease=leases), "rerank", spec, factory) as held:
            held.run(TABLE)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (leases.given, factory.made.released) == (1, 1)  # type: ignore[attr-defined]


def test_on_other_devices_workers_keep_the_model_and_nothing_is_loaded_here(spec) -> None:
    journal = Journal()
    factory = DoubleFactory(LOGIT, journal=journal)
    workers = TableRunner(LocalRunner(WorkerSettings(workers_per_device=1)))
    with hold(ComputeContext(runner=workers), "rerank", spec, factory) as held:
        assert not held.round_trips
        assert held.run.keywords["factory"] is factory
    assert journal.loaded == []


def test_nothing_run_is_a_result_of_nothing() -> None:
    assert merge_results([]) == TableResult()


def test_rows_that_an_earlier_run_computed_count_over_all_slices() -> None:
    ran = TableResult({}, {}, 1.0, 10, 5, 0, 3, UsedDevices("cpu"), "fp32", 3, reused_rows=1)
    taken = TableResult({}, {}, 0.1, 0, 0, 0, 2, UsedDevices(), "fp32", 0, reused_rows=2)
    merged = merge_results([ran, taken])
    assert (merged.reused_rows, merged.device, merged.tokens, merged.largest_batch) == (3, UsedDevices("cpu"), 10, 3)


def test_events_call_the_rows_of_a_part_by_their_numbers_in_the_whole_table(spec) -> None:
    from ensemble_assets_tests.compute.running.doubles import IDS

    context = ComputeContext(events=EventLog())
    with hold(context, "rerank", spec, DoubleFactory(LOGIT, faults(raises="storm"))) as held:
        held.run(table_of([[IDS["storm"]], [IDS["wind"]]]), rows=np.array([7, 3]))
    assert [event.facts["row"] for event in context.events.named("mitigation.row_failed")] == [7]
