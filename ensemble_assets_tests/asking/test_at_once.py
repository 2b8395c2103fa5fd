"""Rows that are run at once have the outputs of the usual way, and whatever is unusual goes the usual way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.asking.at_once import AtOnceRunner, StateCache
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets_tests.compute.running.doubles import (
    IDS,
    VECTOR,
    DoubleFactory,
    Journal,
    faults,
    run_here,
    table_of,
)
from ensemble_assets_tests.compute.stages.rerank.test_kept_states import StatesOfIds, enclosed

FIRST = table_of([[2, 7, 3]])
ROWS = [[2, 9, 10, 11, 3], [2, 8, 3], [2, 9, 10, 11, 3], [2, *range(5, 40), 3]]


def run(runner: AtOnceRunner, table, factory):
    return runner(table, factory, lease=Lease((CpuDevice(),)), events=EventLog())


@pytest.fixture
def runner():
    return AtOnceRunner(in_process_runner().runner)


def test_the_outputs_are_those_of_the_usual_way_and_the_model_is_loaded_once(runner):
    journal = Journal()
    with loaded_once(DoubleFactory(VECTOR, journal=journal)) as factory:
        run(runner, FIRST, factory)
        result = run(runner, table_of(ROWS), factory)
    usual = run_here(table_of(ROWS), DoubleFactory(VECTOR))
    np.testing.assert_array_equal(result.outputs["vector"], usual.outputs["vector"])
    assert (result.tokens, result.failed_rows, result.precision) == (50, {}, usual.precision)
    assert (journal.loaded, journal.calls) == (["fp16@cpu"], 2)


@pytest.mark.parametrize("planted", [{"raises": "storm"}, {"nan": "storm"}, {"nan": "storm", "nan_in_fp32_too": True}])
def test_a_row_that_fails_goes_the_usual_way(runner, planted):
    table = table_of([[2, 9, 3], [2, IDS["storm"], 3]])
    factory = DoubleFactory(VECTOR, faults(**planted))
    with loaded_once(factory) as held:
        run(runner, FIRST, held)
        result = run(runner, table, held)
    usual = run_here(table, factory)
    assert result.failed_rows == usual.failed_rows
    np.testing.assert_array_equal(result.outputs["vector"], usual.outputs["vector"])


def test_an_empty_row_goes_the_usual_way(runner):
    with loaded_once(DoubleFactory(VECTOR)) as factory:
        run(runner, FIRST, factory)
        assert run(runner, table_of([[2, 9, 3], []]), factory).failed_rows == {1: "no_tokens"}


def test_states_of_tokens_are_computed_once_for_all_questions(runner):
    encoder = StatesOfIds()
    passages = enclosed([[7, 8], [9], [10, 11, 12]])
    with loaded_once(encoder) as factory:
        for question in ([20], [21, 22], [23]):
            result = run(runner, table_of([*passages, *enclosed([question])]), factory)
    assert encoder.rows == 3 + 3, "three passages, and every question"
    usual = run_here(table_of([*passages, *enclosed([[23]])]), StatesOfIds())
    order = np.array([3, 0, 2, 2, 1])
    assert result.by_token.lengths.tolist() == usual.by_token.lengths.tolist()
    for name in (STATE, SCALE):
        np.testing.assert_array_equal(result.by_token.read(name, order), usual.by_token.read(name, order))


class Bytes(bytes):
    """States of as many bytes."""

    @property
    def nbytes(self) -> int:
        return len(self)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30), st.integers(0, 60))
def test_kept_states_stay_below_their_limit_and_the_oldest_go_first(uses, limit):
    kept, order = StateCache(limit), []
    for name, rows in uses:
        key = bytes([name, rows])
        if kept.lookup([key]):
            order.remove(key)
        else:
            kept.add({key: Bytes(rows * 8)})
        order.append(key)
        while sum(one[1] * 8 for one in order) > limit:
            order.pop(0)
        found = [bytes([n, r]) for n in range(6) for r in range(1, 7) if kept._states.get(bytes([n, r])) is not None]
        assert sorted(found) == sorted(order)
        assert kept._bytes == sum(one[1] * 8 for one in order) <= limit
