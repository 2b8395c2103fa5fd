"""Measure how fast OpenVINO multiplies matrices on this CPU, and choose the precision by it.

That a CPU has bfloat16 instructions does not say that they are faster. torch's products are 2.2 times as fast in
bfloat16 as in float32 on an AMD EPYC, and 0.6 times on a Xeon whose matrix units the virtual machine hides. There the
dense encoder runs 0.35 to 0.47 times as many tokens in bfloat16 (``docs/decisions/0030``).
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, instruction_sets, usable_cores
from ensemble_assets.common.stopping import use_own_signal_stack
from ensemble_assets.compute.backends.forward import Precision
from ensemble_assets.compute.backends.openvino_graph import import_openvino

_MOST_PROCESSORS = 20
"""Kinds of processors that share a cache folder, as in a cluster with one home."""

_ROWS, _WIDTH, _INNER = 2048, 384, 1536
"""A batch of tokens through the two large products of a small encoder's layer: 4.8 billion operations, 20 to 60 ms."""

_REPEATS = 3
"""Best of so many, in turns, since another program may take the CPU for a moment."""

_WORTH_ROUNDING = 1.2
"""bfloat16 moves vectors (least cosine 0.9999 to float32), so it must be faster by more than a measurement errs."""

SHAPE_STEP = 16
"""Tokens of rows are filled up to multiples of this. OpenVINO prepares every shape that it meets, in some 35 ms for
MiniLM and 10 ms for the small models. Rows filled up take no longer: 144 tokens 4.40 ms and 140 tokens 4.61 ms, 256
tokens 8.34 ms and 250 tokens 8.61 ms (MiniLM in bf16, AMD EPYC). With steps of 32 they do."""

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def compile_settings(precision: Precision, threads: int = 0, streams: int = 1) -> dict[str, Any]:
    """Return the settings that graphs are compiled with for the CPU; no ``threads`` are all cores.

    Streams share the threads. These are not pinned: several runs may share the machine.
    """
    chosen = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False}
    return chosen | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


@dataclass(frozen=True)
class CpuProducts:
    """Rates of matrix products on all cores, in 10^9 operations a second; ``bf16`` is 0 where hardware lacks it."""

    fp32: float
    bf16: float

    @property
    def faster(self) -> Literal["fp32", "bf16"]:
        """The precision that ``auto`` means on this CPU."""
        return "bf16" if self.bf16 > _WORTH_ROUNDING * self.fp32 else "fp32"


def settled_precision(precision: Precision, cache_folder: Path | None) -> Literal["fp32", "bf16"]:
    """Return the precision that OpenVINO computes in: ``auto`` becomes the faster one on this CPU."""
    if precision == "auto":
        return cpu_products(cache_folder).faster
    return "bf16" if precision == "bf16" else "fp32"


@lru_cache(maxsize=8)
def cpu_products(cache_folder: Path | None = None) -> CpuProducts:
    """Give the rates of this CPU. They are measured once per processor, cores and version if there is a cache folder.

    A run that computes nothing can do without: loading OpenVINO's CPU library and measuring takes about half a second.
    """
    stored = stored_products(cache_folder)
    if stored is None:
        stored = _measured()
        _cache(cache_folder).put({_key(): asdict(stored)})
    return stored


def stored_products(cache_folder: Path | None) -> CpuProducts | None:
    """Give the rates of this CPU if they were measured before."""
    if importlib.util.find_spec("openvino") is None:
        return None
    stored = _cache(cache_folder).read().get(_key())
    return CpuProducts(**stored) if isinstance(stored, dict) else None


def _cache(folder: Path | None) -> JsonCache:
    return JsonCache(None if folder is None else folder / "processors.json", _MOST_PROCESSORS)


def _key() -> str:
    return digest([metadata.version("openvino"), instruction_sets(), usable_cores()])


def _measured() -> CpuProducts:
    core = import_openvino().Core()
    names: list[Precision] = ["fp32"]
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        names.append("bf16")
    requests = {name: _request(core, compile_settings(name)) for name in names}
    batch = np.ones((_ROWS, _WIDTH), np.float32)
    for request in requests.values():
        request.infer([batch])
    seconds = dict.fromkeys(names, float("inf"))
    for _ in range(_REPEATS):
        for name, request in requests.items():
            started = time.perf_counter()
            request.infer([batch])
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    requests.clear()
    del request  # of the loop
    use_own_signal_stack()
    work = 4 * _ROWS * _WIDTH * _INNER / 1e9
    return CpuProducts(**{name: round(work / seconds[name], 1) if name in seconds else 0.0 for name in _HINTS})


def _request(core: Any, settings: dict[str, Any]) -> Any:
    """Compile two products, as a layer of an encoder has them."""
    operations = import_openvino("openvino.opset13")
    rows = operations.parameter([_ROWS, _WIDTH], np.float32)
    inner = operations.matmul(rows, np.full((_WIDTH, _INNER), 0.01, np.float32), False, False)
    outer = operations.matmul(operations.gelu(inner, "erf"), np.full((_INNER, _WIDTH), 0.01, np.float32), False, False)
    model = import_openvino().Model([outer], [rows])
    return core.compile_model(model, "CPU", settings).create_infer_request()
