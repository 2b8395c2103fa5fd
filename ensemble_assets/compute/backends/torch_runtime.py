"""Run torch as this program does: precisions, thread counts, matrix products, and what its exceptions mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from transformers.utils import logging

from ensemble_assets.compute.backends.forward import Precision, Runtime, gpu_precision
from ensemble_assets.models.refused_layouts import json_fields

_MEMORY_RAN_OUT = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: str, folder: Path) -> Precision:
    """Return the precision that ``auto`` means for a model's files on ``device``; any other is returned unchanged.

    Call it in the process that runs the model: on CUDA it creates a context.
    """
    if precision != "auto":
        return precision
    if not device.startswith("cuda"):
        return "fp32"
    model_type = str(json_fields(folder / "config.json").get("model_type"))
    with torch.cuda.device(device):
        # the default counts emulation, which Turing has and which is slow
        return gpu_precision(model_type, has_bf16=torch.cuda.is_bf16_supported(including_emulation=False))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off progress bars and load reports. ``load_library_model`` itself refuses files that lack weights."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out: on CUDA, in torch's CPU allocator, or in numpy.

    Where the device is full before the allocator's cap is reached, cuBLAS, cuDNN, the driver or the launch of a kernel
    runs out, each with words of its own.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_RAN_OUT)


@lru_cache(maxsize=1)
def exact_medium() -> bool:
    """Return whether float32 matmul precision ``medium`` still computes in float32 on this CPU.

    It uses oneDNN, which is faster than the default BLAS on some CPUs and rounds to bfloat16 on CPUs with matrix units.
    A product is computed to find out, and eight rows of it once more in double.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, 384, generator=generator) for rows in (512, 1536))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = torch.nn.functional.linear(left, right)[::64]
    finally:
        torch.set_float32_matmul_precision(before)
    # float32 rounds at 6e-8 per operation; bfloat16 inputs would be off by 4e-3
    return torch.allclose(got.double(), left[::64].double() @ right.double().T, rtol=0.0, atol=2e-4)


@contextmanager
def kernels(runtime: Runtime, device: str) -> Iterator[None]:
    """Set torch's process-wide thread count and matmul precision for a block."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(runtime.threads or threads)
    torch.set_float32_matmul_precision("medium" if device == "cpu" and exact_medium() else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
