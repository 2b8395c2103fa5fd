"""Real networks in worker processes on the CPU: the same batches give the same bits, other batches nearly the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets_tests.compute.running.doubles import IDS, table_of
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.compute.running.worker_cases import AsksItself, fixed_batches, meet, random_table, run_on

CPUS = tuple(CpuDevice(1, f"cpu-{number:016x}") for number in range(2))
RNG = np.random.default_rng(5)
ROWS = [[2, *RNG.integers(5, len(IDS), size=length).tolist(), 3] for length in RNG.integers(1, 40, size=80)]
LIMITS = {"vector": 1e-5, "weight": 1e-4, "logit": 1e-4}
"""What ``Runner`` promises for batches that are cut differently."""


@dataclass(frozen=True)
class AllThree(PlainFactory):
    """An encoder, a sparse encoder and a CrossEncoder behind one door, so that starting the workers is paid once.

    Attributes:
        factories: of the three kinds.
        meeting: where the first batch of each of ``parties`` processes waits for those of the others.
    """

    factories: tuple[Any, ...]
    meeting: Path
    parties: int = 1
    identity: str = "all-three"

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return {name: spec for factory in self.factories for name, spec in factory.outputs.items()}

    def load(self, device: str) -> Any:
        forwards = [factory.load(device) for factory in self.factories]

        def forward(table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
            meet(self.meeting, self.parties)
            return {name: values for one in forwards for name, values in one(table, batch).items()}

        forward.precision = "fp32"
        return forward


def test_workers_of_one_cpu_share_its_cores_and_their_memory_adds_up(tmp_path):
    table, log = random_table(), EventLog()
    settings = WorkerSettings(fixed_batches(), workers_per_device=2, work_folder=tmp_path / "work")
    result = LocalRunner(settings)(table, AsksItself(tmp_path, 2), lease=Lease((CpuDevice(),)), events=log)
    processes, threads = (set(column.tolist()) for column in result.outputs["process"].T)
    assert os.getpid() not in processes
    assert len(processes) == 2
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}
    peaks = [event.facts["used_bytes"] for event in log.named("device.peak")]
    assert max(peaks) < result.peak_bytes <= sum(peaks)


@pytest.mark.slow
def test_one_process_and_two_workers_give_the_same_bits_and_other_batches_nearly(tmp_path):
    from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
    from ensemble_assets.compute.backends.forward import Runtime
    from ensemble_assets.models.model_files import locate
    from ensemble_assets_tests.compute.backends.checkpoints import checkpoint

    makers = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}
    factories = []
    for kind, make in makers.items():
        spec = checkpoint(tmp_path / kind, kind)
        factories.append(make(spec, locate(spec), Runtime(threads=1), **({"top_k": 0} if kind == "sparse" else {})))
    table = table_of(ROWS, second_from=[min(2, len(row)) for row in ROWS])
    alone, both = AllThree(tuple(factories), tmp_path), AllThree(tuple(factories), tmp_path, parties=3)
    here, _ = run_on(CPUS[:1], table, alone, tmp_path / "here", batches=fixed_batches(96), workers_per_device=0)
    workers, log = run_on(CPUS, table, both, tmp_path / "workers", batches=fixed_batches(96))
    other, _ = run_on(CPUS[:1], table, alone, tmp_path / "other", batches=fixed_batches(333), workers_per_device=0)
    assert {event.facts["device"] for event in log.named("batch.done")} == {cpu.uuid for cpu in CPUS}
    assert set(here.outputs) == {"vector", "weight", "active", "logit"}
    for name, values in here.outputs.items():
        assert values.tobytes() == workers.outputs[name].tobytes()
        np.testing.assert_allclose(other.outputs[name], values, rtol=0.0, atol=LIMITS.get(name, 0.0))
    assert any((here.outputs[name] != other.outputs[name]).any() for name in LIMITS)  # the limits are not idle
