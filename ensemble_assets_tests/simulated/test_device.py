"""The simulated GPU: an allocator that caches and is capped, other programs, and every fault on demand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
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
)
from ensemble_assets_tests.simulated.simulation import VirtualClock

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
