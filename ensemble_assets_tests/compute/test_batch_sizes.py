"""How large batches may be: probed upwards, halved by failure, never lost beyond what can be afforded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble_assets.compute.batch_memory import BatchMemory
from ensemble_assets.compute.batch_sizes import BatchSizes, SizeMemory, SizeSettings
from ensemble_assets.compute.failed_sizes import FailedSizes, Failure
from ensemble_assets.compute.memory_model import Observation, PeakModel
from ensemble_assets.compute.work import Batch

PLENTY = 100_000_000_000
TOTAL = 10_000_000


def batch(tokens: int, longest: int = 100) -> Batch:
    return Batch(np.arange(tokens // longest), longest)


def sizes(total: int = TOTAL, memory: SizeMemory | None = None, **settings: object) -> BatchSizes:
    return BatchSizes(SizeSettings(**settings), total, memory)  # type: ignore[arg-type]


def peak(tokens: int) -> int:
    return 1_000_000_000 + 100_000 * tokens


def test_the_first_batches_are_small_and_probes_double() -> None:
    known = sizes(initial_tokens=4000)
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 4000
    known.worked(batch(4000), peak(4000))
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 8000
    assert known.allowed_tokens(100, PLENTY, 0, probe=False) == pytest.approx(4800)


def test_a_batch_is_at_most_a_fortieth_of_all_work_unless_that_is_little() -> None:
    seen = SizeMemory(worked_tokens=10**9, worked_square=10**12)
    assert sizes(memory=seen).allowed_tokens(100, PLENTY, 0, probe=True) == TOTAL / 40
    assert sizes(total=1000, memory=seen).allowed_tokens(100, PLENTY, 0, probe=True) == 16384


def test_memory_limits_a_batch_once_it_is_known() -> None:
    known = sizes(memory=SizeMemory(worked_tokens=10**6, worked_square=10**9))
    for tokens in (10_000, 20_000, 30_000, 40_000, 50_000, 60_000):
        known.worked(batch(tokens), peak(tokens))
    allowed = known.allowed_tokens(100, 3_000_000_000, 0, probe=True)
    assert allowed == pytest.approx((3_000_000_000 / 1.05 - 1_000_000_000) / 100_000)  # few seen: 5 % for error
    assert peak(int(allowed)) <= 3_000_000_000


def test_a_maximum_holds_whatever_the_memory() -> None:
    seen = SizeMemory(worked_tokens=10**9, worked_square=10**12)
    assert sizes(memory=seen, max_tokens=8192).allowed_tokens(100, PLENTY, 0, probe=True) == 8192


def test_longer_rows_than_ever_seen_start_small() -> None:
    seen = SizeMemory(worked_tokens=100_000, worked_square=100_000 * 64)
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
    known = sizes(memory=SizeMemory(worked_tokens=8000, worked_square=800_000))
    known.failed(batch(8000), PLENTY)
    assert known.memory().failures == ()
    known.failed(batch(8000), PLENTY)
    assert known.memory().failures == (Failure(8000, 100, PLENTY),)
    assert known.allowed_tokens(100, PLENTY, 0, probe=True) == 4000


def test_what_worked_is_remembered_between_runs_per_model_and_kind(tmp_path: Path) -> None:
    file = BatchMemory(tmp_path / "deep" / "sizes.json")
    seen = SizeMemory((Observation(4096, 128, 10**9),), 4096, 4096 * 128, (Failure(8192, 128, 2 * 10**9),))
    assert file.recall("model:fp16", "Tesla T4") == SizeMemory()
    assert file.keep("model:fp16", "Tesla T4", seen)
    assert BatchMemory(tmp_path / "deep" / "sizes.json").recall("model:fp16", "Tesla T4") == seen
    assert file.recall("model:fp32", "Tesla T4") == SizeMemory()
    assert file.recall("model:fp16", "A100") == SizeMemory()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"version": 99}', '{"version": 1, "entries": {"m|k": 3}}'])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sizes.json"
    path.write_text(content)
    file = BatchMemory(path)
    assert file.recall("m", "k") == SizeMemory()
    assert file.keep("m", "k", SizeMemory(worked_tokens=7))
    assert file.recall("m", "k").worked_tokens == 7


def test_the_file_keeps_only_the_latest_models(tmp_path: Path) -> None:
    file = BatchMemory(tmp_path / "sizes.json")
    for index in range(70):
        file.keep(f"model-{index}", "k", SizeMemory(worked_tokens=index + 1))
    assert file.recall("model-0", "k") == SizeMemory()
    assert file.recall("model-69", "k").worked_tokens == 70
