"""How large batches may be: probed upwards, halved by failure, never lost beyond what can be afforded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.batching.memory_model import Observation, PeakModel
from ensemble_assets.compute.batching.size_limits import FailedSizes, Failure, KnownSizes, SizeLimits, SizeSettings
from ensemble_assets.compute.tokens.token_tables import Batch

PLENTY = 100_000_000_000
TOTAL = 10_000_000


def batch(tokens: int, longest: int = 100) -> Batch:
    return Batch(np.arange(tokens // longest), longest)


def sizes(total: int = TOTAL, memory: KnownSizes | None = None, **settings: object) -> SizeLimits:
    return SizeLimits(SizeSettings(**settings), total, memory)  # type: ignore[arg-type]


def peak(tokens: int) -> int:
    return 1_000_000_000 + 100_000 * tokens


def test_the_first_batches_are_small_and_probes_double() -> None:
    known = sizes(initial_tokens=4000)
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 4000
    known.worked(batch(4000), peak(4000))
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 8000
    assert known.allowed_tokens(100, PLENTY, 0, probe=False) == pytest.approx(4800)


def test_a_batch_is_at_most_a_fortieth_of_all_work_unless_that_is_little() -> None:
    seen = KnownSizes(worked_tokens=10**9, worked_square=10**12)
    assert sizes(memory=seen).allowed_tokens(100, PLENTY, 0, probe=True) == TOTAL / 40
    assert sizes(total=1000, memory=seen).allowed_tokens(100, PLENTY, 0, probe=True) == 16384


def test_memory_limits_a_batch_once_it_is_known() -> None:
    known = sizes(memory=KnownSizes(worked_tokens=10**6, worked_square=10**9))
    for tokens in (10_000, 20_000, 30_000, 40_000, 50_000, 60_000):
        known.worked(batch(tokens), peak(tokens))
    allowed = known.allowed_tokens(100, 3_000_000_000, 0, probe=True)
    assert allowed == pytest.approx((3_000_000_000 / 1.05 - 1_000_000_000) / 100_000)  # few seen: 5 % for error
    assert peak(int(allowed)) <= 3_000_000_000


def test_a_maximum_holds_whatever_the_memory() -> None:
    seen = KnownSizes(worked_tokens=10**9, worked_square=10**12)
    assert sizes(memory=seen, max_tokens=8192).allowed_tokens(100, PLENTY, 0, probe=True) == 8192


def test_longer_rows_than_ever_seen_start_small() -> None:
    seen = KnownSizes(worked_tokens=100_000, worked_square=100_000 * 64)
    assert sizes(memory=seen, initial_tokens=4000).allowed_tokens(6400, PLENTY, 0, probe=False) <= 4800


def test_a_failure_halves_and_the_size_grows_back_to_just_below_it() -> None:
    failed, model = FailedSizes(), PeakModel()
    failed.failed(Failure(10_000, 100, PLENTY))
    assert failed.bound(model, 0, 1e9) == 5_000
    for _ in range(10):
        failed.succeeded(model)
    assert failed.bound(model, 0, 1e9) == pytest.approx(9_300)


def test_a_size_that_may_fail_is_not_tried_when_its_loss_cannot_be_afforded() -> None:
    failed, model = FailedSizes(), PeakModel()
    failed.failed(Failure(10_000, 100, PLENTY))
    for _ in range(10):
        failed.succeeded(model)
    assert failed.bound(model, 6_000, affordable_tokens=9_000) == 6_000
    assert failed.bound(model, 0, affordable_tokens=9_000) == 5_000


def test_a_failure_that_the_memory_explains_bounds_nothing() -> None:
    model = PeakModel([Observation(tokens, 100, peak(tokens)) for tokens in (1000, 2000, 4000, 5000)])
    failed = FailedSizes([Failure(10_000, 100, cap_bytes=peak(9_000))])
    assert failed.bound(model, 0, 1e9) == float("inf")
    unexplained = FailedSizes([Failure(10_000, 100, cap_bytes=2 * peak(10_000))])
    assert unexplained.bound(model, 0, 1e9) == pytest.approx(9_300)


def test_after_many_successes_a_failed_size_is_tried_again() -> None:
    failed, model = FailedSizes(), PeakModel()
    failed.failed(Failure(10_000, 100, PLENTY))
    for _ in range(80):
        failed.succeeded(model)
    assert failed.bound(model, 0, 1e9) > 10_000


def test_one_failure_of_a_size_that_worked_is_chance_two_are_not() -> None:
    known = sizes(memory=KnownSizes(worked_tokens=8000, worked_square=800_000))
    known.failed(batch(8000), PLENTY)
    assert known.learned().failures == ()
    known.failed(batch(8000), PLENTY)
    assert known.learned().failures == (Failure(8000, 100, PLENTY),)
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 4000


@given(
    st.lists(st.one_of(st.none(), st.integers(100, 100_000)), max_size=200),
    st.integers(0, 100_000),
    st.floats(0, 200_000),
)
def test_the_bound_after_any_history_is_below_every_failure_that_is_kept(
    history: list[int | None], worked: int, affordable: float
) -> None:
    """None is a success, a number is a size that failed for no known reason."""
    failed, model = FailedSizes(), PeakModel()
    for size in history:
        if size is None:
            failed.succeeded(model)
            continue
        before = failed.bound(model, worked, float("inf"))
        failed.failed(Failure(size, 100, PLENTY))
        assert failed.bound(model, worked, float("inf")) <= min(before, size / 2)  # a failure halves
    bound = failed.bound(model, worked, affordable)
    kept = [failure.tokens for failure in failed.failures]
    assert bound <= 0.93 * min(kept, default=float("inf"))
    assert bound <= max(affordable, worked, min(kept, default=float("inf")) / 2)
