"""How a model is run: precision, threads, backend. Data only; what follows from it is the forwards' business."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
BackendName = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True)
class Runtime:
    """How a model is run.

    Attributes:
        precision: ``auto`` is the fastest that keeps half a percent of a vector's direction: bf16 where the device has
            it in hardware (on a CPU: with OpenVINO), fp16 on older CUDA devices, else fp32. Pooling, norms and final
            logits are fp32 always.
        threads: CPU threads of one forward; 0 leaves the backend's own choice.
        backend: ``torch`` is the reference; ``auto`` takes OpenVINO on a CPU where it is installed.
        cache_folder: converted models are kept below it; None keeps none, so that only torch can be used.
    """

    precision: Precision = "auto"
    threads: int = 0
    backend: BackendName = "torch"
    cache_folder: Path | None = None
