"""What ``doctor`` says of models on a GPU, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_assets.compute.backends.gpu_forecast import about_files, about_memory, room
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.cuda import GpuFacts, list_cuda_devices
from ensemble_assets_tests.compute.devices.nvidia import install, two_t4s
from ensemble_assets_tests.gpu.acceptance.models import model

GB = 1_000_000_000
T4 = GpuFacts("560.35.03", (7, 5), 0, 15 * GB, 473_000_000)
LARGE = replace(T4, capability=(9, 0), free=140 * GB)


def test_the_memory_of_a_gpu_is_described_with_its_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia = install(monkeypatch, two_t4s())
    nvidia.used, nvidia.reserved = {"GPU-aaaa1111": 3 * GB}, 473_000_000
    gpu = list_cuda_devices()[0]
    assert about_memory(gpu, gpu.facts(), Ceiling()) == (
        "Tesla T4 (GPU-aaaa1111): driver 560.35.03, compute capability 7.5. 3.0 GB in use by 11, 22, 0.5 GB kept by "
        "the driver, 8.2 GB left for a model and its batches."
    )
    assert nvidia.users == 0


def test_room_is_limited_by_the_ceiling_and_by_the_card() -> None:
    below = 256 << 20
    assert room(LARGE, Ceiling()) == 12 * GB - below - 500_000_000
    assert room(replace(T4, free=4 * GB), Ceiling()) == 4 * GB - below - 500_000_000


@pytest.mark.parametrize(
    ("name", "facts", "precision", "expected"),
    [
        ("qwen3-0.6b", T4, "auto", "fp16, memory-efficient attention with repeated keys, "),
        ("qwen3-0.6b", LARGE, "auto", "bf16, flash attention, "),
        ("minilm", T4, "auto", "fp16, memory-efficient attention, "),
        ("minilm", LARGE, "auto", "fp16, memory-efficient attention, flash without padding, "),
        ("minilm", LARGE, "fp32", "fp32, memory-efficient attention, flash without padding, "),
    ],
)
def test_precision_and_kernel_follow_from_the_card(
    tmp_path: Path, name: str, facts: GpuFacts, precision: str, expected: str
) -> None:
    said = about_files(*model(name, tmp_path, small=True), facts, Ceiling(), precision)
    assert said.startswith(expected)
    assert said.endswith("and fits")


def test_a_row_that_does_not_fit_now_is_said_with_the_length_that_does(tmp_path: Path) -> None:
    """Hidden 64 and inner 96, gated: 832 bytes a token in fp16, 6.8 MB for 8,192."""
    spec, files = model("qwen3-0.6b", tmp_path, small=True)
    weights = (files.folder / "model.safetensors").stat().st_size
    taken = (256 << 20) + 500_000_000 + weights
    said = about_files(spec, files, replace(T4, free=taken + 832 * 1_000), Ceiling(), "auto")
    assert said.endswith("rows of more than about 1,000 of its 8,192 tokens do not fit now")
    said = about_files(spec, files, replace(T4, free=taken + 832 * 8_192), Ceiling(), "auto")
    assert said.endswith("its longest row of 8,192 tokens takes about 0.0 GB and fits")


def test_nothing_is_said_of_a_model_whose_configuration_says_nothing(tmp_path: Path) -> None:
    spec, files = model("minilm", tmp_path, small=True)
    (files.folder / "config.json").write_text("{}")
    assert about_files(spec, files, T4, Ceiling(), "auto") == ""
