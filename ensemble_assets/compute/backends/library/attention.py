"""Give models on a GPU inputs for which fast attention kernels exist.

Flash attention takes no mask, and before compute capability 8.0 no kernel but the plainest takes fewer key heads than
query heads. That one holds a number per head and pair of tokens: 15 GB for 28 heads and 8,000 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers.integrations import sdpa_attention

from ensemble_assets.compute.backends.library.model import LibraryModel
from ensemble_assets.models.spec import ModelKind

_GROUPED_HEADS = (8, 0)
"""Compute capability from which on flash attention takes fewer key heads than query heads."""


def fit_to_gpu(model: LibraryModel, capability: tuple[int, int]) -> None:
    """Prepare a loaded model for batches on a GPU of a compute capability."""
    if not model.spec.is_colbert and needs_no_mask(model.model, model.spec.kind):
        leave_out_mask(model.model)
        model.layouts = {task: replace(layout, left=False) for task, layout in model.layouts.items()}
    repeat_keys(capability)


def needs_no_mask(model: Any, kind: ModelKind) -> bool:
    """Whether a model's texts may be padded on the right without a mask: no token looks at what follows it.

    Only models with rotary positions and a pooling are meant. Scores of causal rerankers are read off the last place.
    """
    layers = [
        layer for layer in model.modules() if hasattr(layer, "is_causal") and hasattr(layer, "num_key_value_groups")
    ]
    return kind == "dense" and bool(layers) and all(layer.is_causal for layer in layers)


def leave_out_mask(model: Any) -> None:
    """Let a model's network compute without a mask; the pooling still gets it.

    sentence-transformers calls ``forward`` itself, past the hooks of torch.
    """
    for module in model.children():
        network = getattr(module, "model", None)
        if isinstance(network, torch.nn.Module):
            network.forward = partial(_without_mask, network.forward)


def repeat_keys(capability: tuple[int, int]) -> None:
    """Repeat key heads for query heads, in this process, where no fast kernel does without."""
    if capability < _GROUPED_HEADS:
        sdpa_attention.use_gqa_in_sdpa = _never


def _without_mask(forward: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
    words.pop("attention_mask", None)
    return forward(*arguments, **words)


def _never(*_: object) -> bool:
    return False
