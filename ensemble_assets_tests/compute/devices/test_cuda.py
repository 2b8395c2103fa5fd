"""What is asked of NVML and torch.cuda, call by call. No GPU was there; see ``nvidia`` for what that proves."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.backends.torch_runtime import resolve_precision
from ensemble_assets.compute.devices.cuda import CudaDevice, CudaSession, list_cuda_devices
from ensemble_assets_tests.compute.devices.nvidia import T4_BYTES, Nvidia, install, two_t4s

GB = 1_000_000_000


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> Nvidia:
    return install(monkeypatch, two_t4s())


@pytest.fixture
def session(nvidia: Nvidia) -> CudaSession:
    return CudaSession(list_cuda_devices()[0])


def test_the_stand_in_has_no_name_that_the_real_libraries_lack() -> None:
    import pynvml

    for name in vars(two_t4s().nvml()):
        assert hasattr(pynvml, name), name
    for name in vars(two_t4s().cuda()):
        assert hasattr(torch.cuda, name), name
    fraction, *rest = inspect.signature(torch.cuda.set_per_process_memory_fraction).parameters.values()
    assert fraction.name == "fraction"
    assert all(parameter.default is not inspect.Parameter.empty for parameter in rest)
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters


def test_gpus_are_listed_by_uuid_name_and_size_and_nvml_is_given_back(nvidia: Nvidia) -> None:
    assert list_cuda_devices() == (
        CudaDevice("GPU-aaaa1111", "Tesla T4", T4_BYTES),
        CudaDevice("GPU-bbbb2222", "Tesla T4", T4_BYTES),
    )
    assert nvidia.users == 0
    assert nvidia.calls == []  # no CUDA context


def test_no_driver_is_told_in_words(nvidia: Nvidia) -> None:
    nvidia.fails = nvidia.NVMLError("Driver Not Loaded")
    with pytest.raises(DeviceError, match=r"no NVIDIA driver answers \(NVML: Driver Not Loaded\)"):
        list_cuda_devices()


def test_a_gpu_whose_memory_cannot_be_read_is_refused_in_nvmls_words(nvidia: Nvidia) -> None:
    """As where GPU and host share their memory: a driver answers, but without that reading there is no ceiling."""
    nvidia.bad_readings = 10
    with pytest.raises(DeviceError, match=r"cannot be read \(NVML: Unknown Error\), so no ceiling could be kept"):
        list_cuda_devices()
    assert nvidia.users == 0


def test_a_missing_package_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DeviceError, match="nvidia-ml-py is not installed"):
        list_cuda_devices()


def test_memory_is_that_of_all_processes_on_the_named_gpu(nvidia: Nvidia) -> None:
    nvidia.used = {"GPU-aaaa1111": 5 * GB, "GPU-bbbb2222": 7 * GB}
    second = list_cuda_devices()[1]
    assert (second.memory().used, second.memory().free) == (7 * GB, T4_BYTES - 7 * GB)
    assert second.holders() == (11, 22)
    assert nvidia.users == 0


@pytest.mark.parametrize("first_version_only", [False, True])
def test_what_the_driver_reserves_counts_as_used_only_where_it_cannot_be_told_apart(
    nvidia: Nvidia, first_version_only: bool
) -> None:
    nvidia.used, nvidia.reserved = {"GPU-aaaa1111": 5 * GB}, 473_000_000
    nvidia.first_version_only = first_version_only
    reading = list_cuda_devices()[0].memory()
    assert reading.used == 5 * GB + (473_000_000 if first_version_only else 0)
    assert reading.free == T4_BYTES - 5 * GB - 473_000_000


def test_a_reading_that_fails_is_tried_again_and_then_an_error(session: CudaSession, nvidia: Nvidia) -> None:
    nvidia.used = {"GPU-aaaa1111": 5 * GB}
    nvidia.bad_readings = 3  # both versions of the first attempt, the first version of the second
    assert session.memory().used == 5 * GB
    nvidia.bad_readings = 6
    with pytest.raises(DeviceError, match=r"cannot be read \(NVML: Unknown Error\)"):
        session.memory()


def test_a_gpu_that_is_gone_is_told_in_words_and_names_no_holders(nvidia: Nvidia) -> None:
    first, _ = list_cuda_devices()
    nvidia.silent = first.uuid
    with pytest.raises(DeviceError, match=r"the GPU GPU-aaaa1111 does not answer \(NVML: GPU is lost\)"):
        first.memory()
    with pytest.raises(DeviceError, match="Check nvidia-smi"):
        first.facts()
    assert first.holders() == ()
    nvidia.fails = nvidia.NVMLError("Driver/library version mismatch")
    assert first.holders() == ()
    assert nvidia.users == 0


def test_a_divided_gpu_is_its_instances(nvidia: Nvidia) -> None:
    nvidia.divided = {
        "GPU-aaaa1111": [("MIG-1", "Tesla T4 MIG 1g", 5 * GB), ("MIG-2", "Tesla T4 MIG 2g", 10 * GB)],
        "GPU-bbbb2222": [],
    }
    nvidia.used = {"MIG-2": 3 * GB}
    first, second, whole = list_cuda_devices()
    assert [first.uuid, second.uuid, whole.uuid] == ["MIG-1", "MIG-2", "GPU-bbbb2222"]
    assert second.total_bytes == 10 * GB
    assert second.memory().used == 3 * GB
    assert second.environment()["CUDA_VISIBLE_DEVICES"] == "MIG-2"


def test_torch_allocates_and_attends_as_the_ceiling_and_changing_shapes_need(nvidia: Nvidia) -> None:
    variables = list_cuda_devices()[0].environment()
    assert variables["PYTORCH_CUDA_ALLOC_CONF"] == variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert variables["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "1"


def test_a_worker_sees_its_own_gpu_only(nvidia: Nvidia) -> None:
    second = list_cuda_devices()[1]
    assert second.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb2222"
    assert second.torch_device == "cuda:0"


def test_a_device_that_cannot_be_opened_says_what_to_check(nvidia: Nvidia) -> None:
    nvidia.broken = RuntimeError("no kernel image")
    with pytest.raises(DeviceError, match="nvidia-smi") as caught:
        list_cuda_devices()[0].open()
    assert "RuntimeError" in str(caught.value)


def test_an_allocator_that_would_not_keep_to_the_cap_is_refused(nvidia: Nvidia) -> None:
    nvidia.allocator = "cudaMallocAsync"
    with pytest.raises(DeviceError, match="PYTORCH_ALLOC_CONF chooses the allocator cudaMallocAsync"):
        list_cuda_devices()[0].open()


def test_the_cap_is_a_fraction_of_the_memory_that_torch_sees(session: CudaSession, nvidia: Nvidia) -> None:
    session.limit_allocations(T4_BYTES // 4)
    session.limit_allocations(2 * T4_BYTES)
    session.limit_allocations(-5)
    session.limit_allocations(None)
    assert nvidia.named("set_per_process_memory_fraction") == [(0.25,), (1.0,), (0.0,), (1.0,)]


def test_what_a_session_measures_and_releases(session: CudaSession, nvidia: Nvidia) -> None:
    nvidia.used = {"GPU-aaaa1111": 3 * GB}
    assert session.memory().used == 3 * GB
    assert (session.reserved_bytes(), session.peak_bytes()) == (700, 600)
    session.begin_peak()
    session.release_cache()
    assert [call[0] for call in nvidia.calls] == ["reset_peak_memory_stats", "empty_cache"]
    assert nvidia.users == 1  # a worker keeps NVML: the sampler asks twenty times a second


@pytest.mark.parametrize(
    ("model_type", "native", "expected"),
    [("qwen3", False, "fp16"), ("qwen3", True, "bf16"), ("xlm-roberta", True, "fp16"), ("", True, "bf16")],
)
def test_encoders_are_finer_in_fp16_and_emulated_bf16_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_type: str, native: bool, expected: str
) -> None:
    """A T4 answers True unless emulation is left out."""
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    from contextlib import nullcontext
    from types import SimpleNamespace

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    fake = SimpleNamespace(device=lambda name: nullcontext(), is_bf16_supported=supported)
    monkeypatch.setattr(torch, "cuda", fake)
    assert resolve_precision("auto", "cuda:0", tmp_path) == expected
