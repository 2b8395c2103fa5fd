"""Several processes on real devices: leases exclude each other, a killed worker's memory and batches come back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets_tests.compute.devices.test_leases import no_overlap
from ensemble_assets_tests.compute.running.worker_cases import (
    ActingLog,
    assert_nothing_is_left,
    kill_after,
    random_table,
    run_on,
)
from ensemble_assets_tests.gpu.cases import MIB, HungryModel, in_a_process
from ensemble_assets_tests.simulated.model import expected_vector

pytestmark = pytest.mark.gpu

TABLE = random_table(200)
EXPECTED = np.stack([expected_vector(TABLE, row) for row in range(len(TABLE))])
MODEL = HungryModel(10_000, seconds=0.05)


def test_two_contending_processes_never_overlap_and_find_the_memory_free(gpu, tmp_path):
    before = gpu.memory().used
    contenders = [in_a_process("contend", gpu, tmp_path, 3, wait=False) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=550)[0].splitlines()[-1]) for process in contenders]
    assert [process.returncode for process in contenders] == [0, 0]
    assert len((tmp_path / "overlap.log").read_text().splitlines()) == 2 * 3 * 2
    assert no_overlap(tmp_path / "overlap.log")
    for answer in answers:  # each held 512 MiB and a context, all of which was back when the next was granted
        assert max(answer["used_at_begin"]) <= before + 256 * MIB


def test_every_gpu_gets_a_worker_and_all_rows_are_right(gpus, tmp_path):
    result, log = run_on(gpus, TABLE, MODEL, tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert sorted(log.pids()) == sorted(gpu.uuid for gpu in gpus)


def test_a_killed_worker_leaves_its_batches_to_the_other_on_the_same_gpu(gpu, tmp_path):
    log = ActingLog(act=kill_after(4, f"{gpu.uuid}#1"))
    ceiling = Ceiling(min(12_000_000_000, gpu.total_bytes))
    result, _ = run_on((gpu,), TABLE, MODEL, tmp_path, log, workers_per_device=2, ceiling=ceiling)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert [event.facts["reason"] for event in log.named("worker.lost")] == ["worker_lost"]
    assert_nothing_is_left(log, (gpu,), tmp_path)


def test_a_killed_worker_is_started_again_and_its_memory_comes_back(gpu, tmp_path):
    before = gpu.memory().used
    log = ActingLog(act=kill_after(4, gpu.uuid))
    result, _ = run_on((gpu,), TABLE, MODEL, tmp_path, log)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert len(log.named("worker.started")) == 2
    result, _ = run_on((gpu,), TABLE, MODEL, tmp_path)  # its lease waits until the driver has cleaned up
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert gpu.memory().used <= before + 256 * MIB
