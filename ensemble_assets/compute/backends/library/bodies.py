"""Recognise models that fast backends can run: one transformer of a kind that they are trusted with."""

from __future__ import annotations

from typing import Any

import torch

from ensemble_assets.compute.backends.library.model import LibraryModel
from ensemble_assets.compute.backends.openvino_graph import ARGUMENTS
from ensemble_assets.models.spec import Pooling

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
_ABSOLUTE_POSITIONS = {
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet"),
    *("roberta", "xlm-roberta"),
}
"""Architectures that OpenVINO is trusted with. Rotary positions gave NaN in padded rows, and some crash in bf16."""


def body_of(model: LibraryModel) -> Pooling | None:
    """The pooling word of a model that is one transformer and nothing else; None for any other.

    Fast backends compute the transformer's states and pool themselves, so every module must be known to them.
    """
    layouts = model.layouts.values()
    if any(layout.left or layout.bag or not layout.arrays.keys() <= set(ARGUMENTS) for layout in layouts):
        return None
    modules = list(model.model.children())
    names = [type(module).__name__ for module in modules]
    if names[0] not in ("Transformer", "MLMTransformer"):
        return None
    if modules[0].model.config.model_type not in _ABSOLUTE_POSITIONS:
        # the tiled head runs the library's network, of any architecture
        return _sparse(model, modules, names) if model.spec.kind == "sparse" else None
    return {"dense": _dense, "sparse": _sparse, "rerank": _rerank}[model.spec.kind](model, modules, names)


def _dense(model: LibraryModel, modules: list[Any], names: list[str]) -> Pooling | None:
    cut = getattr(model.model, "truncate_dim", None) is not None
    if cut or names[1:] not in (["Pooling"], ["Pooling", "Normalize"]):
        return None
    pooling = modules[1]
    mode = pooling.pooling_mode if isinstance(pooling.pooling_mode, str) else None
    if not pooling.include_prompt and any(model.prompt(task) for task in ("query", "document")):
        return None
    return _POOLINGS.get(mode or "")


def _sparse(model: LibraryModel, modules: list[Any], names: list[str]) -> Pooling | None:
    if names[1:] != ["SpladePooling"] or getattr(model.model, "max_active_dims", None) is not None:
        return None
    pooling = modules[1]
    plain = pooling.pooling_strategy == "max" and pooling.activation_function == "relu"
    return "splade_max" if plain else None


def _rerank(model: LibraryModel, modules: list[Any], names: list[str]) -> Pooling | None:
    head = getattr(modules[0].model, "classifier", None)
    return "cross_encoder" if len(modules) == 1 and isinstance(head, torch.nn.Linear) else None
