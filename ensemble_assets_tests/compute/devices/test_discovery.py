"""What is found, what will be used, and why: in words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.devices.cuda import CudaDevice
from ensemble_assets.compute.devices.discovery import Discovery, discover_devices, select_visible
from ensemble_assets_tests.compute.devices.nvidia import install, two_t4s

TWO = (
    CudaDevice("GPU-aaaa1111", "Tesla T4", 16_106_127_360),
    CudaDevice("GPU-bbbb2222", "Tesla T4", 16_106_127_360),
)


def found(visible: str | None = None, gpus: Sequence[CudaDevice] = TWO, cuda: str | None = "12.8") -> Discovery:
    return discover_devices(visible, list_gpus=lambda: gpus, torch_cuda=lambda: cuda)


def test_all_gpus_are_used_and_each_is_named() -> None:
    discovery = found()
    assert discovery.chosen == TWO
    assert "GPU 0: Tesla T4, 16.1 GB, GPU-aaaa1111." in discovery.sentences
    assert discovery.sentences[-1] == "Stages compute on 2 of 2 GPUs, one worker process each."


def test_cuda_visible_devices_narrows_the_choice() -> None:
    assert found("1").chosen == TWO[1:]
    assert found("1").sentences[-1] == "Stages compute on 1 of 2 GPUs, one worker process each."


def test_hiding_all_gpus_is_said_and_the_cpu_is_used() -> None:
    discovery = found("")
    assert [device.torch_device for device in discovery.chosen] == ["cpu"]
    assert discovery.sentences[-2:] == ("CUDA_VISIBLE_DEVICES='' leaves none of them.", "Stages compute on the CPU.")


def test_a_cpu_build_of_torch_is_said_with_the_remedy() -> None:
    discovery = found(cuda=None)
    assert [device.torch_device for device in discovery.chosen] == ["cpu"]
    assert "CPU build" in discovery.sentences[-2]
    assert "install a CUDA build" in discovery.sentences[-2]


def test_no_driver_is_said_in_the_drivers_words() -> None:
    def none() -> Sequence[CudaDevice]:
        raise DeviceError("no NVIDIA driver answers (NVML: Driver Not Loaded)")

    discovery = discover_devices(list_gpus=none)
    assert discovery.sentences[1] == "No GPU is used: no NVIDIA driver answers (NVML: Driver Not Loaded)."
    assert discovery.sentences[-1] == "Stages compute on the CPU."


def test_a_driver_without_a_gpu() -> None:
    assert "has no GPU" in found(gpus=()).sentences[1]


def test_the_host_is_described_with_what_limits_its_memory() -> None:
    host = found().sentences[0]
    assert host.startswith("Host: ")
    assert "GB of memory (" in host


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", [0]),
        ("1,0", [1, 0]),
        ("GPU-bbbb", [1]),
        ("GPU-", []),  # not only one
        ("0,9,1", [0]),  # like CUDA: stops at the first bad entry
        ("-1", []),
        (" 1 ", [1]),
        ("0,0", [0]),
        ("1,GPU-bbbb2222,0", [1, 0]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible: str, expected: list[int]) -> None:
    assert list(select_visible(TWO, visible)) == [TWO[index] for index in expected]


def test_an_instance_of_a_divided_gpu_is_chosen_by_its_uuid() -> None:
    instances = [CudaDevice(f"MIG-{number}", "A100 MIG 1g.5gb", 5_000_000_000) for number in range(2)]
    assert found("MIG-1", instances).chosen == (instances[1],)


@pytest.mark.parametrize(("visible", "warned"), [("1", True), ("GPU-bbbb2222", False), (None, False)])
def test_counting_different_gpus_is_warned_of(visible: str | None, warned: bool) -> None:
    mixed = (TWO[0], CudaDevice("GPU-bbbb2222", "Quadro P400", 2_000_000_000))
    assert any("CUDA_DEVICE_ORDER" in sentence for sentence in found(visible, mixed).sentences) == warned
    assert not any("CUDA_DEVICE_ORDER" in sentence for sentence in found(visible).sentences)


def test_by_default_the_driver_and_torch_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, two_t4s())
    assert [device.uuid for device in discover_devices().chosen] == ["GPU-aaaa1111", "GPU-bbbb2222"]
