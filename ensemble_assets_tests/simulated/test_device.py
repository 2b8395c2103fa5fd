"""The simulated GPU: an allocator that caches and is capped, other programs, and every fault on demand."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.devices.ceiling import Ceiling, MemoryGuard
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import Batch
from ensemble_assets_tests.compute.running.doubles import table_of
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice, SimulatedSession
from ensemble_assets_tests.simulated.model import (
    Faults,
    MemoryNeeds,
    SimulatedForward,
    SimulatedModel,
    Speed,
    expected_vector,
    is_padded,
)
from ensemble_assets_tests.simulated.simulation import VirtualClock, simulate

MB = 1_000_000
TABLE = table_of([[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]])


def loaded(faults: Faults, **device: object) -> tuple[SimulatedSession, SimulatedForward]:
    session = SimulatedDevice(**device).open()  # type: ignore[arg-type]
    model = SimulatedModel(speed=Speed(1e9, 0.0), faults=faults)
    return session, model.load(session.device.torch_device)


def batch(*rows: int) -> Batch:
    return Batch(np.array(rows), int(TABLE.lengths[list(rows)].max()))


def test_every_row_gets_its_own_answer() -> None:
    _, forward = loaded(Faults())
    vectors = forward(TABLE, batch(0, 3))["vector"]
    assert vectors.tolist() == [expected_vector(TABLE, row).tolist() for row in (0, 3)]
    assert vectors[0].tolist() == [3.0, 6.0, 14.0, 3.0]  # count, sum, sum by position, largest


def test_fault_out_of_memory_from_a_size_on() -> None:
    _, forward = loaded(Faults(out_of_memory_from=8))
    forward(TABLE, batch(0, 1))  # 6 padded tokens
    with pytest.raises(DeviceOutOfMemoryError):
        forward(TABLE, batch(0, 3))  # 8


def test_fault_out_of_memory_by_chance_is_about_as_frequent_as_asked_and_repeats() -> None:
    def failures() -> list[int]:
        _, forward = loaded(Faults(out_of_memory_share=0.3))
        failed = []
        for number in range(200):
            try:
                forward(TABLE, batch(1))
            except DeviceOutOfMemoryError:
                failed.append(number)
        return failed

    assert 30 <= len(failures()) <= 90
    assert failures() == failures()


def test_fault_device_lost_in_a_given_batch_of_a_given_device() -> None:
    _, forward = loaded(Faults(lost_at=1, only_on=frozenset({"SIM-0"})))
    forward(TABLE, batch(0))
    with pytest.raises(DeviceError, match="SIM-0 was lost"):
        forward(TABLE, batch(0))
    _, other = loaded(Faults(lost_at=1, only_on=frozenset({"SIM-0"})), uuid="SIM-1")
    for _ in range(3):
        other(TABLE, batch(0))


def test_fault_hang_takes_forever() -> None:
    _, forward = loaded(Faults(hangs_at=0))
    assert next(forward.phases(batch(0))) == math.inf


def test_fault_rows_on_which_the_model_raises() -> None:
    _, forward = loaded(Faults(raises_on=frozenset({2})))
    forward(TABLE, batch(0, 1))
    with pytest.raises(ModelFailedError) as caught:
        forward(TABLE, batch(1, 2))
    assert caught.value.reason == "ValueError"


def test_fault_not_finite_rows_are_right_in_full_precision() -> None:
    session, forward = loaded(Faults(not_finite_on=frozenset({1})))
    vectors = forward(TABLE, batch(0, 1))["vector"]
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False]
    precise = SimulatedModel(faults=Faults(not_finite_on=frozenset({1}))).full_precision()
    assert np.isfinite(precise.load(session.device.torch_device)(TABLE, batch(0, 1))["vector"]).all()


def test_a_failed_batch_gives_its_memory_back_to_the_allocator() -> None:
    session, forward = loaded(Faults(out_of_memory_from=1))
    weights = MemoryNeeds().weights
    with pytest.raises(DeviceOutOfMemoryError):
        forward(TABLE, batch(0, 3))
    session.begin_peak()
    assert session.peak_bytes() == weights


def test_memory_grows_in_the_middle_of_a_batch() -> None:
    """So that others, and the sampler, can come in between."""
    session, forward = loaded(Faults(), block_bytes=1)
    seen = [session.reserved_bytes() - MemoryNeeds().weights for _ in forward.phases(batch(0, 3))]
    assert seen == [int(8 * 100_000 / 2), 8 * 100_000]


def test_context_libraries_and_other_programs_count() -> None:
    clock = VirtualClock()
    others = OtherProcesses(((1.0, 300 * MB), (2.0, 100 * MB)))
    device = SimulatedDevice("SIM-0", "T", 2_000 * MB, 400 * MB, 50 * MB, others=others, clock=clock)
    assert device.memory().used == 0
    session = device.open()
    assert session.memory().used == 400 * MB
    session.load_lazily()
    session.load_lazily()  # once
    assert session.memory().used == 450 * MB
    clock.now = 1.5
    assert session.memory().used == 750 * MB
    with pytest.raises(DeviceOutOfMemoryError, match="left"):
        session.allocate(1_300 * MB)
    clock.now = 2.0
    session.allocate(1_300 * MB)


def test_a_model_is_loaded_onto_opened_devices_only() -> None:
    with pytest.raises(DeviceError, match="opened"):
        SimulatedModel().load("simulated:nowhere")


@given(st.lists(st.one_of(st.integers(1, 50), st.just(0), st.just(-1)), max_size=60), st.integers(1, 8))
def test_the_allocator_agrees_with_a_list_of_blocks(steps: list[int], block: int) -> None:
    """Positive: allocate so much; 0: free the oldest; -1: give the cache back."""
    session = SimulatedDevice(total_bytes=1_000, context_bytes=100, block_bytes=block).open()
    session.limit_allocations(600)
    live: list[int] = []
    reserved = peak = 0
    for step in steps:
        if step > 0:
            blocks = math.ceil((sum(live) + step) / block) * block
            fits = blocks <= reserved or (blocks <= 600 and 100 + blocks <= 1_000)
            if not fits:
                with pytest.raises(DeviceOutOfMemoryError):
                    session.allocate(step)
                continue
            session.allocate(step)
            live.append(step)
            reserved, peak = max(reserved, blocks), max(peak, sum(live))
        elif step == 0 and live:
            session.free(live.pop(0))
        elif step == -1:
            session.release_cache()
            reserved = math.ceil(sum(live) / block) * block
        assert (session.reserved_bytes(), session.peak_bytes()) == (reserved, peak)
        assert session.memory().used == 100 + reserved


def test_reserved_memory_is_never_free() -> None:
    device = SimulatedDevice(total_bytes=2_000 * MB, context_bytes=400 * MB, reserved_bytes=500 * MB)
    assert device.memory().used == 500 * MB
    session = device.open()
    assert session.memory().free == 1_100 * MB
    with pytest.raises(DeviceOutOfMemoryError):
        session.allocate(1_200 * MB)


def test_pages_are_taken_without_another_look_at_the_cap() -> None:
    session = SimulatedDevice(block_bytes=2 << 20, granule_bytes=20 << 20).open()
    session.limit_allocations(30 << 20)
    session.allocate(22 << 20)
    assert session.held == 40 << 20
    with pytest.raises(DeviceOutOfMemoryError):
        session.allocate(20 << 20)


def test_what_fragments_takes_more_than_is_allocated() -> None:
    session = SimulatedDevice(block_bytes=1, fragmentation=0.15).open()
    shares = set()
    for _ in range(50):
        session.release_cache()
        session.fragment()
        session.allocate(1_000_000)
        shares.add(session.held / 1_000_000)
        session.free(1_000_000)
    assert 1.0 <= min(shares) < 1.05
    assert 1.1 < max(shares) <= 1.15
    assert session.peak_bytes() == 1_000_000


def test_memory_grows_outside_the_allocator_in_the_batches_that_are_named() -> None:
    session, forward = loaded(Faults(), late_growth=((1, 300 * MB), (2, 50 * MB)), context_bytes=0)
    seen = []
    for _ in range(4):
        forward(TABLE, batch(0))
        seen.append(session.outside)
    assert seen == [0, 300 * MB, 350 * MB, 350 * MB]


def test_a_reading_may_be_older_than_the_growth_that_follows_it() -> None:
    session = SimulatedDevice(block_bytes=1, context_bytes=0, racing=1.0).open()
    session.allocate(500)
    assert (session.reserved_bytes(), session.memory().used, session.reserved_bytes()) == (0, 500, 500)


def test_a_full_card_raises_what_torch_raises_and_the_model_calls_it_out_of_memory() -> None:
    import torch

    full = OtherProcesses(((0.0, 14_000 * MB),))
    session = SimulatedDevice(raw_errors=True, others=full, clock=VirtualClock()).open()
    with pytest.raises(RuntimeError, match="driver error: out of memory"):
        session.allocate(3_000 * MB)
    with pytest.raises(torch.AcceleratorError, match="out of memory"):
        session.grow_outside(3_000 * MB)
    session.limit_allocations(100 * MB)
    with pytest.raises(torch.OutOfMemoryError, match="over the cap"):
        session.allocate(200 * MB)
    session.limit_allocations(None)
    with pytest.raises(DeviceOutOfMemoryError):
        SimulatedModel(MemoryNeeds(weights=3_000 * MB)).place(session)


def test_fault_rows_on_which_the_device_is_lost() -> None:
    _, forward = loaded(Faults(poison_rows=frozenset({2})))
    forward(TABLE, batch(0, 1))
    with pytest.raises(DeviceError, match="was lost"):
        forward(TABLE, batch(1, 2))


def test_a_batch_without_padding_may_need_another_kernels_memory() -> None:
    needs = MemoryNeeds(per_token=10.0, unpadded_square=3.0)
    assert needs.batch_bytes(20, 10, padded=True) == 200
    assert needs.batch_bytes(20, 10, padded=False) == 200 + 3 * 20 * 10
    assert is_padded(TABLE.lengths, batch(0, 1))
    assert not is_padded(TABLE.lengths, batch(0))


def test_new_shapes_cost_time_once_and_clocks_fall() -> None:
    session = SimulatedDevice().open()
    speed = Speed(100.0, 0.0, shape=5.0, steady=6.0, fallen=3.0)
    forward = SimulatedModel(MemoryNeeds(0), speed).place(session)
    seconds = [round(sum(forward.phases(batch(*rows))), 6) for rows in ((0,), (0,), (3,), (3,))]
    assert seconds == [5.03, 0.03, 5.04, 0.12]


def test_sessions_on_one_device_see_each_other_and_together_stay_below_the_ceiling() -> None:
    """A worker that was started again beside what a dead one still holds, or two programs of ours."""
    device = SimulatedDevice(block_bytes=1, context_bytes=400 * MB)
    first, second = device.open(), device.open()
    first.together = second.together = [first, second]
    guards = [MemoryGuard(session, Ceiling(12_000 * MB)) for session in (first, second)]
    taken = [0, 0]
    while True:
        before = list(taken)
        for number, session in enumerate((first, second)):
            guards[number].measure()
            with contextlib.suppress(DeviceOutOfMemoryError):
                session.allocate(50 * MB)
                taken[number] += 1
        assert first.memory().used == second.memory().used <= 12_000 * MB
        if before == taken:
            break
    assert min(taken) > 100


def test_a_lost_workers_memory_is_gone_only_later_and_the_next_worker_waits_for_it() -> None:
    lengths = np.full(400, 100)
    faults = Faults(poison_rows=frozenset({3}))
    device = SimulatedDevice(total_bytes=3_000 * MB, lingers=2.0)
    model = SimulatedModel(MemoryNeeds(weights=1_500 * MB), faults=faults)
    report = simulate(lengths, model, [device], WorkerSettings(ceiling=Ceiling(3_000 * MB)))
    assert report.error is None
    assert report.failed == {3: "device_failed"}
    assert not any(event.facts["reason"] == "out_of_memory" for event in report.events.named("worker.lost"))
