"""The ceiling on real devices: the allocator's cap, splits after out-of-memory, NVML against the allocator."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets_tests.compute.running.worker_cases import random_table, run_on
from ensemble_assets_tests.gpu.cases import MIB, HungryModel, in_a_process
from ensemble_assets_tests.simulated.model import expected_vector

pytestmark = pytest.mark.gpu

TWO_GB = 2_000_000_000
TABLE = random_table(300, 100)
EXPECTED = np.stack([expected_vector(TABLE, row) for row in range(len(TABLE))])


class Watcher:
    """Looks at a device from outside, every 10 ms."""

    def __init__(self, device) -> None:
        self.most = 0
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._device.memory().used)


def test_the_allocator_refuses_what_would_pass_a_ceiling_of_2_gb_and_recovers(gpu):
    seen = in_a_process("cap", gpu, TWO_GB)
    assert seen["refused"] == "OutOfMemoryError"
    assert 0 < seen["reserved"] <= seen["cap"] + 20 * MIB  # pages of 20 MiB, mapped without another look at the cap
    assert seen["used"] <= seen["hard"]
    assert seen["reserve"] > 0  # a context is never free
    assert seen["cap"] <= seen["hard"] - seen["before"] - seen["reserve"]
    assert seen["recovered"] == seen["cap"] // 2


def test_a_stage_that_could_use_any_amount_stays_under_a_ceiling_of_2_gb(gpu, tmp_path):
    before = gpu.memory().used
    hard = before + TWO_GB
    batches = PlannerSettings(SizeSettings(initial_tokens=200, saturation_tokens=10**6))
    with Watcher(gpu) as watcher:
        result, log = run_on((gpu,), TABLE, HungryModel(500_000), tmp_path, ceiling=Ceiling(hard), batches=batches)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert before < watcher.most <= hard
    assert result.peak_bytes <= hard
    assert log.named("device.peak")[0].facts["used_bytes"] <= hard


def test_a_batch_that_does_not_fit_is_split_and_the_rest_goes_on(gpu, tmp_path):
    """The first batch asks for twice the ceiling."""
    per_token = 1_000_000
    tokens = 2 * TWO_GB // per_token
    batches = PlannerSettings(SizeSettings(initial_tokens=tokens, saturation_tokens=tokens * 8))
    ceiling = Ceiling(gpu.memory().used + TWO_GB)
    result, log = run_on((gpu,), TABLE, HungryModel(per_token), tmp_path, ceiling=ceiling, batches=batches)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert log.named("mitigation.oom")
    assert log.named("mitigation.split")
    assert result.failed_rows == {}


def test_a_row_that_can_never_fit_fails_alone(gpu, tmp_path):
    longest = int(TABLE.lengths.max())
    alone = np.flatnonzero(TABLE.lengths > 0.9 * longest)
    model = HungryModel(TWO_GB // int(0.9 * longest))  # rows over 90 % of the longest need more than the whole ceiling
    result, _ = run_on((gpu,), TABLE, model, tmp_path, ceiling=Ceiling(gpu.memory().used + TWO_GB))
    assert set(alone.tolist()) <= set(result.failed_rows)
    assert set(result.failed_rows.values()) == {"out_of_memory"}
    done = np.setdiff1d(np.arange(len(TABLE)), list(result.failed_rows))
    assert len(done) > len(TABLE) / 4
    np.testing.assert_array_equal(result.outputs["vector"][done], EXPECTED[done])


def test_nvml_and_the_allocator_agree_and_the_sampler_sees_what_lasts(gpu):
    size = 512 * MIB
    seen = in_a_process("sampler", gpu, size)
    (used0, held0), (used1, held1), (used2, held2) = seen["readings"]
    assert abs((used1 - used0) - (held1 - held0)) <= 32 * MIB
    assert size <= held1 - held0 <= size + 32 * MIB
    assert abs((used2 - used0) - (held2 - held0)) <= 32 * MIB
    assert held2 - held0 <= 32 * MIB
    assert size <= seen["peak"] <= size + 64 * MIB
    assert max(used for _, used in seen["timeline"]) >= used0 + size
    assert seen["guard_peak"] >= used0 + size


def test_the_process_of_the_tests_holds_no_context(gpu, tmp_path):
    """None of the device memory is in the parent: NVML needs no context, and only workers open a device."""
    run_on((gpu,), random_table(10), HungryModel(1000), tmp_path)
    assert not torch.cuda.is_initialized()
