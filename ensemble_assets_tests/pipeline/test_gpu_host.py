"""On a host with GPUs: the manifest's device memory and the latency baseline, with the labels that stages write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ensemble_assets.artefacts.latency_baseline import ModelSeconds, SlaBaseline, store_baseline
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.compute.devices import cuda
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.settings.options import Settings
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, write_collection
from ensemble_assets_tests.orchestration.test_memory_limits import MB, heavy
from ensemble_assets_tests.simulated.device import SimulatedDevice

UUID = "GPU-8f2c1b34-5d0e-4c57-9a3e-0b6f1d2c3a4e"
NAMES = ("NVIDIA H200",)


def store_gpu_baseline(cache: Path, first: Outcome) -> None:
    """What ``baseline sla`` would have stored on this host."""
    (model,) = first.artefact("dense_embeddings").record.models
    store_baseline(
        cache / "baselines",
        SlaBaseline(
            collection="notes",
            content=first.artefact("chunks").record.content,
            texts=20,
            host=this_host(NAMES),
            models=(ModelSeconds(model.slug, model.fingerprint, 0.0, (1e4,)),),
            libraries=library_versions(),
            measured_at="2026-01-01T00:00:00+00:00",
        ),
    )


def test_the_manifest_names_device_memory_and_rerank_finds_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(NAMES))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: NAMES[number])
    write_collection(tmp_path / "corpora" / "notes")
    factories = {"dense": heavy("dense", MB), "sparse": heavy("sparse", MB), "rerank": heavy("rerank", MB)}
    devices = [SimulatedDevice(UUID, total_bytes=4_000 * MB, context_bytes=100 * MB)]
    pipeline = Pipeline(tmp_path, Computing(factories, devices))

    first = pipeline.run()
    assert first.succeeded, first.error
    reranked = first.manifest()["rerank_run"]
    assert reranked["device"] == UUID
    assert reranked["payload"]["gpu_peak_gb"] >= 0.1, "at least the device's context"
    assert first.manifest()["performance_baseline"]["not_measured"] == "never_measured"

    store_gpu_baseline(tmp_path / "cache", first)
    monkeypatch.setattr(cuda, "list_cuda_devices", lambda: devices)
    for reuse in (True, False):
        budgeted = pipeline.run({"encoding.reuse": reuse}).manifest()["performance_baseline"]
        assert budgeted["measured"]["accelerators"] == list(NAMES)
        assert budgeted["budget"]["budget_seconds"] > 0


@pytest.mark.parametrize("asked", [False, True])
def test_rows_are_packed_on_gpus_only_and_only_if_asked_for(tmp_path: Path, asked: bool) -> None:
    settings = Settings(device={"packed_rows": asked}, paths={"cache_dir": str(tmp_path)})
    run = ComputeRun(settings, "run", EventLog())
    for device, packed in ((SimulatedDevice(UUID), asked), (CpuDevice(), False)):
        assert Computing(devices=[device]).context(run).runtime.packed is packed
    cluster = Settings(device={"packed_rows": asked}, cluster={"engine": "ray"}, paths={"cache_dir": str(tmp_path)})
    assert Computing().context(ComputeRun(cluster, "run", EventLog())).runtime.packed is asked, "its nodes know devices"
