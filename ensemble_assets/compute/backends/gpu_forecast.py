"""Say before a run what a model would be on a GPU: precision, attention kernel, and whether its longest row fits.

Read from the model's configuration and from NVML: nothing is loaded, and no CUDA context is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_assets.compute.backends.forward import gpu_precision
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.cuda import CudaDevice, GpuFacts
from ensemble_assets.models.model_files import ModelFiles, weight_bytes
from ensemble_assets.models.refused_layouts import json_fields
from ensemble_assets.models.spec import ModelSpec

_CONTEXT_BYTES = 500_000_000
"""CUDA context and libraries; reports range from 300 to 800 MB."""

_HALF = 2


def about_memory(gpu: CudaDevice, facts: GpuFacts, ceiling: Ceiling) -> str:
    """Describe a GPU's driver, who holds its memory, and what is left below the ceiling."""
    holders = ", ".join(map(str, gpu.holders())) or "no process that the driver names"
    return (
        f"{gpu.name} ({gpu.uuid}): driver {facts.driver}, compute capability {facts.capability[0]}."
        f"{facts.capability[1]}. {_gb(facts.used)} in use by {holders}, {_gb(facts.reserved)} kept by the driver, "
        f"{_gb(max(0, room(facts, ceiling)))} left for a model and its batches."
    )


def room(facts: GpuFacts, ceiling: Ceiling) -> int:
    """Bytes that a worker's allocator could hold now."""
    return min(ceiling.hard_bytes - facts.used, facts.free) - ceiling.margin_bytes - _CONTEXT_BYTES


def about_files(spec: ModelSpec, files: ModelFiles, facts: GpuFacts, ceiling: Ceiling, precision: str) -> str:
    """Describe a model whose files are here."""
    config = json_fields(files.folder / "config.json")
    return about_model(spec, config, weight_bytes(files.folder), facts, ceiling, precision)


def about_model(
    spec: ModelSpec, config: Mapping[str, Any], stored: int, facts: GpuFacts, ceiling: Ceiling, precision: str
) -> str:
    """Describe a model on a GPU; empty where its configuration does not say enough.

    ``stored`` are the bytes of its weight files. A row's need is an estimate: its states and the widest tensors between
    two layers, in half precision.
    """
    hidden, inner = (config.get(name) for name in ("hidden_size", "intermediate_size"))
    if not isinstance(hidden, int) or not isinstance(inner, int):
        return ""
    has_bf16 = facts.capability >= (8, 0)
    if precision == "auto":
        precision = gpu_precision(str(config.get("model_type", "")), has_bf16=has_bf16)
    gated = "num_key_value_heads" in config
    number = 4 if precision == "fp32" else _HALF
    in_half = str(config.get("dtype") or config.get("torch_dtype")) in ("float16", "bfloat16")
    weights = stored * number // (_HALF if in_half else 4)
    per_token = number * (2 * hidden + (3 if gated else 2) * inner)
    longest = spec.max_tokens or int(config.get("max_position_embeddings", 0))
    left = room(facts, ceiling) - weights
    if left < per_token * longest:
        verdict = f"rows of more than about {max(0, left // per_token):,} of its {longest:,} tokens do not fit now"
    else:
        verdict = f"its longest row of {longest:,} tokens takes about {_gb(per_token * longest)} and fits"
    return f"{precision}, {_attention(gated, has_bf16)}, {_gb(weights)} of weights; {verdict}"


def _attention(causal: bool, flash: bool) -> str:
    if causal:
        return "flash attention" if flash else "memory-efficient attention with repeated keys"
    return "memory-efficient attention" + (", flash without padding" if flash else "")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
