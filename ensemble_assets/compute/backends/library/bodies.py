"""Recognise models that fast backends can run: one transformer of a kind that they are trusted with."""

from __future__ import annotations

import torch

from ensemble_assets.compute.backends.library.model import LibraryModel
from ensemble_assets.compute.backends.openvino_graph import ARGUMENTS
from ensemble_assets.compute.tokens.token_tables import TASKS
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
    first, *rest = model.model.children()
    modules = [type(module).__name__ for module in rest]
    if type(first).__name__ not in ("Transformer", "MLMTransformer"):
        return None
    if model.spec.kind == "sparse":  # of any architecture: the tiled head runs the library's network
        plain = modules == ["SpladePooling"] and getattr(model.model, "max_active_dims", None) is None
        plain = plain and (rest[0].pooling_strategy, rest[0].activation_function) == ("max", "relu")
        return "splade_max" if plain else None
    body: Pooling | None = None
    if model.spec.kind == "rerank":
        linear = isinstance(getattr(first.model, "classifier", None), torch.nn.Linear)
        body = "cross_encoder" if linear and not modules else None
    elif modules in (["Pooling"], ["Pooling", "Normalize"]) and getattr(model.model, "truncate_dim", None) is None:
        whole = rest[0].include_prompt or not any(model.prompt(task) for task in TASKS)
        body = _POOLINGS.get(str(rest[0].pooling_mode)) if whole else None
    return body if first.model.config.model_type in _ABSOLUTE_POSITIONS else None
