"""A table through a model in this process: every row computed once, whatever the batches, and what fails isolated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import DeviceError, ModelUnavailableError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cuda import CudaDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import DistinctRows, row_keys
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets_tests.compute.running.doubles import (
    IDS,
    LOGIT,
    NO_FAULTS,
    VECTOR,
    DoubleFactory,
    DoubleForward,
    Faults,
    expected_outputs,
    faults,
    run_here,
    table_of,
)
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

OUTPUTS = {**VECTOR, **LOGIT}
NAN, BROKEN, HUGE = IDS["nan"], IDS["broken"], IDS["huge"]
HUNGER = 256 << 20
"""Bytes; more than what tests before leave to be freed."""

ROWS = st.lists(st.lists(st.integers(5, 30), min_size=1, max_size=12), max_size=25)


def run_rows(rows: list[list[int]], planted: Faults = NO_FAULTS, budget: int = 24, **other):
    events = EventLog()
    factory = DoubleFactory(OUTPUTS, planted, **other)
    return run_here(table_of(rows), factory, budget, events), factory.journal, events


def check(result, rows: list[list[int]], failed: set[int] = frozenset()) -> None:
    """Every row's outputs are the double's, zeros where it failed."""
    assert set(result.failed_rows) == set(failed)
    for row, tokens in enumerate(rows):
        for name, expected in expected_outputs(OUTPUTS, tokens).items():
            wanted = np.zeros_like(expected) if row in failed else expected
            np.testing.assert_array_equal(result.outputs[name][row], wanted)


@given(rows=ROWS, budget=st.integers(1, 60))
def test_every_distinct_row_is_computed_once_and_lands_at_its_number(rows, budget):
    result, journal, _ = run_rows(rows, budget=budget)
    check(result, rows)
    assert sorted(journal.tokens) == sorted({tuple(row) for row in rows})
    assert result.distinct_rows == len({tuple(row) for row in rows})
    assert result.tokens == sum(len(row) for row in {tuple(row) for row in rows})


def first_equal_rows(table: TokenTable) -> list[int]:
    distinct = DistinctRows.of(row_keys(table))
    return distinct.first[distinct.group].tolist()


@given(rows=ROWS)
def test_equal_rows_are_found_as_a_dictionary_would(rows):
    table = table_of(rows)
    first: dict[tuple[int, ...], int] = {}
    assert first_equal_rows(table) == [first.setdefault(tuple(row), at) for at, row in enumerate(rows)]


def test_pairs_with_the_same_ids_but_another_boundary_are_different():
    assert first_equal_rows(table_of([[1, 2, 3]] * 3, second_from=[1, 2, 1])) == [0, 1, 0]


@given(rows=ROWS, bad=st.lists(st.integers(0, 24), max_size=5), budget=st.integers(1, 60))
def test_rows_that_make_the_model_raise_are_isolated(rows, bad, budget):
    rows = [[*row, BROKEN] if at in bad else row for at, row in enumerate(rows)]
    result, _, events = run_rows(rows, faults(raises="broken"), budget)
    failed = {at for at, row in enumerate(rows) if BROKEN in row}
    check(result, rows, failed)
    assert set(result.failed_rows.values()) <= {"ValueError"}
    assert "secret" not in repr(events.events)


@given(rows=ROWS, most=st.integers(1, 40), budget=st.integers(1, 60))
def test_batches_that_do_not_fit_are_split_and_finished_rows_stay(rows, most, budget):
    result, journal, _ = run_rows(rows, Faults(most_tokens=most), budget)
    failed = {at for at, row in enumerate(rows) if len(row) > most}
    check(result, rows, failed)
    assert set(result.failed_rows.values()) <= {"out_of_memory"}
    assert len(journal.tokens) == len(set(journal.tokens))


def test_a_model_that_fails_on_everything_is_given_up_after_few_calls():
    rows = [[10 + at, 5, 6] for at in range(300)]
    result, journal, events = run_rows(rows, faults(raises="a", raises_after=0), budget=900)
    check(result, rows, set(range(300)))
    assert journal.calls < 50
    assert [event.facts["reason"] for event in events.named("mitigation.gave_up")] == ["ValueError"]


def test_long_rows_failing_one_after_another_do_not_cost_the_short_ones():
    rows = [[HUGE] * (20 + at) for at in range(40)] + [[5 + at] for at in range(10)]
    result, _, events = run_rows(rows, Faults(most_tokens=15), budget=60)
    check(result, rows, set(range(40)))
    assert not events.named("mitigation.gave_up")


def test_a_model_that_breaks_midway_keeps_what_was_done():
    rows = [[5 + at] * (1 + at % 5) for at in range(40)]
    result, journal, _ = run_rows(rows, Faults(raises_after=20), budget=12)
    assert set(journal.rows).isdisjoint(result.failed_rows)
    check(result, rows, set(range(40)) - set(journal.rows))
    assert len(journal.rows) >= 20


def test_rows_that_are_not_finite_are_redone_in_fp32_and_counted():
    rows = [[5, 6], [7, NAN], [8], [9, NAN, 5], [7, NAN]]
    result, journal, events = run_rows(rows, faults(nan="nan"))
    check(result, rows)
    assert result.precision_redone == 2
    assert result.precision == "fp16"
    assert journal.loaded == ["fp16@cpu", "fp32@cpu"]
    assert [event.facts for event in events.named("mitigation.precision")] == [{"rows": 2, "precision": "fp32"}]


def test_rows_that_stay_not_finite_have_failed_and_read_as_zeros():
    rows = [[5, 6], [7, NAN], [7, NAN]]
    result, _, _ = run_rows(rows, faults(nan="nan", nan_in_fp32_too=True))
    check(result, rows, {1, 2})
    assert result.failed_rows == {1: "not_finite", 2: "not_finite"}


class _Hungry(DoubleFactory):
    """Takes host memory in fp32 only, as a model of twice the size does."""

    def load(self, device: str) -> DoubleForward:
        forward = super().load(device)
        if self.precision == "fp32":
            forward.weights = np.ones(HUNGER, np.uint8)
        return forward


def test_the_peak_includes_the_pass_in_fp32():
    plain = run_here(table_of([[5], [NAN]]), DoubleFactory(OUTPUTS, faults(nan="nan"))).peak_bytes
    redone = run_here(table_of([[5], [NAN]]), _Hungry(OUTPUTS, faults(nan="nan")))
    assert redone.precision_redone == 1
    assert redone.peak_bytes > plain + HUNGER // 2


class _WithoutFullPrecision(PlainFactory):
    """A factory that knows one precision only."""

    outputs = OUTPUTS
    identity = "single"

    def load(self, device: str) -> DoubleForward:
        return DoubleFactory(OUTPUTS, faults(nan="nan")).load(device)


def test_a_factory_without_fp32_leaves_such_rows_failed():
    result = run_here(table_of([[5], [NAN]]), _WithoutFullPrecision())
    assert result.failed_rows == {1: "not_finite"}


class _Unloadable(DoubleFactory):
    def load(self, device: str) -> DoubleForward:
        if self.precision == "fp32":
            raise ModelUnavailableError("gone")
        return super().load(device)


def test_rows_have_failed_where_fp32_cannot_be_loaded():
    result = run_here(table_of([[5], [NAN]]), _Unloadable(OUTPUTS, faults(nan="nan")))
    assert result.failed_rows == {1: "not_finite"}
    assert result.outputs["vector"][0].any()


def test_a_model_that_cannot_be_loaded_is_the_callers_error():
    with pytest.raises(ModelUnavailableError):
        run_here(table_of([[5]]), _Unloadable(OUTPUTS, precision="fp32"))


class _LosesDevice(DoubleFactory):
    def load(self, device: str) -> DoubleForward:
        def forward(table, batch):
            raise DeviceError("cuda:0 is gone")

        forward.precision = "fp32"
        return forward


def test_a_lost_device_is_not_split_around():
    with pytest.raises(DeviceError):
        run_here(table_of([[5], [6]]), _LosesDevice(OUTPUTS))


def test_rows_without_tokens_have_failed_without_a_call():
    result, journal, _ = run_rows([[], [5], []])
    assert result.failed_rows == {0: "no_tokens", 2: "no_tokens"}
    assert journal.tokens == [(5,)]


def test_nothing_to_do_loads_nothing():
    empty = TokenTable(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.bool_))
    factory = DoubleFactory(OUTPUTS)
    result = run_here(empty, factory)
    assert (factory.journal.loaded, result.device, result.precision) == ([], UsedDevices(), "none")
    assert result.outputs["vector"].shape == (0, 8)


def test_it_says_where_it_ran():
    factory = DoubleFactory(OUTPUTS)
    assert run_here(table_of([[5]]), factory).device == UsedDevices("cpu")
    assert factory.journal.loaded == ["fp16@cpu"]


def test_a_gpu_is_never_computed_on_in_this_process():
    lease = Lease((CudaDevice("GPU-1", "Tesla T4", 16_000_000_000),))
    with pytest.raises(DeviceError, match="worker processes only"):
        in_process_runner()(table_of([[5]]), DoubleFactory(OUTPUTS), lease=lease, events=EventLog())


def test_every_batch_is_reported_and_memory_is_looked_at():
    result, journal, events = run_rows([[5] * 4, [6] * 3, [7] * 2], budget=4)
    done = [(event.facts["rows"], event.facts["longest"]) for event in events.named("batch.done")]
    assert done == [(1, 4), (1, 3), (1, 2)]
    assert result.peak_bytes > 1 << 20
    assert result.largest_batch == max(batch.size for batch in journal.batches)
