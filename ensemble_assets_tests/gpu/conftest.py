"""The GPUs of this machine, leased for the whole session; every test skips, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cuda import CudaDevice
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.settings.default_paths import lock_folder
from ensemble_assets.settings.options import Paths
from ensemble_assets.settings.sources import process_environment


@pytest.fixture(scope="session")
def gpus() -> Iterator[tuple[CudaDevice, ...]]:
    """All usable GPUs. The machine's own lease is held meanwhile, so that no run and no test disturb each other."""
    found = discover_devices(process_environment().get("CUDA_VISIBLE_DEVICES"))
    chosen = tuple(device for device in found.chosen if isinstance(device, CudaDevice))
    if not chosen:
        pytest.skip("no CUDA device: " + " ".join(found.sentences[1:]))
    with lease_devices("tests", "gpu-tests", lock_folder=lock_folder(Paths()), events=EventLog(), devices=chosen):
        yield chosen


@pytest.fixture
def gpu(gpus: tuple[CudaDevice, ...]) -> CudaDevice:
    """The first one."""
    return gpus[0]
