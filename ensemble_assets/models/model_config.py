"""Complete a model's spec from its own JSON files: width, length limit, pooling."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec, Pooling

_POOLING_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last_token",
}
_PLAIN_MODULES = ("Transformer", "Pooling", "Normalize", "SpladePooling", "MLMTransformer")
_ROBERTA_POSITIONS = 2
"""Rows of the position table that RoBERTa-like models cannot use: they number positions from the padding id + 1."""
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def complete_spec(spec: ModelSpec, files: ModelFiles) -> ModelSpec:
    """Complete a spec: dimension and pooling if it has none, and a length limit that the model can take.

    Raises:
        ModelUnavailableError: if the files contradict the spec or describe a model that this project cannot run.
    """
    config = _read(files, "config.json")
    max_tokens = min(spec.max_tokens, *_limits(config, _read(files, "tokenizer_config.json")))
    width = 1 if spec.kind == "rerank" else _width(config, "vocab_size" if spec.kind == "sparse" else "hidden_size")
    if spec.dimension not in (0, width):
        raise ModelUnavailableError(
            f"{spec.slug}: registered with dimension {spec.dimension}, but its config.json says {width}. "
            "Correct the spec"
        )
    pooling = _own_pooling(spec, files) if spec.dimension == 0 and spec.kind == "dense" else spec.pooling
    return replace(
        spec,
        dimension=width,
        max_tokens=max_tokens,
        pooling=pooling,
        query_prefix=spec.query_prefix or "",
        document_prefix=spec.document_prefix or "",
    )


def hidden_width(files: ModelFiles) -> int:
    """Return the width of the token states; 0 if ``config.json`` has none."""
    return _width(_read(files, "config.json"), "hidden_size")


def _width(config: dict[str, Any], key: str) -> int:
    return int(config.get(key, 0) or config.get("dim", 0))


def _limits(config: dict[str, Any], tokenizer: dict[str, Any]) -> list[int]:
    limits = []
    positions = config.get("max_position_embeddings")
    if positions:
        unusable = _ROBERTA_POSITIONS if config.get("model_type") in _ROBERTA_LIKE else 0
        limits.append(int(positions) - unusable)
    declared = tokenizer.get("model_max_length")
    if declared:  # absent limits are written as 1e30
        limits.append(int(declared))
    return limits


def _own_pooling(spec: ModelSpec, files: ModelFiles) -> Pooling:
    """Return the pooling in a sentence-transformers folder; that of the spec if the folder has none."""
    modules = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in _read(files, "modules.json") or []]
    strange = [module for module in modules if module not in _PLAIN_MODULES]
    if strange:
        raise ModelUnavailableError(
            f"{spec.slug}: has a module {strange[0]} after its encoder, which is not supported. Choose another model"
        )
    settings = _read(files, "1_Pooling/config.json")
    if not settings:
        return spec.pooling
    named = settings.get("pooling_mode")
    wanted = [_POOLING_NAMES.get(str(named))] if named else [v for k, v in _POOLING_FLAGS.items() if settings.get(k)]
    unknown = any(on for key, on in settings.items() if key.startswith("pooling_mode_") and key not in _POOLING_FLAGS)
    if len(wanted) != 1 or wanted[0] is None or unknown:
        raise ModelUnavailableError(
            f"{spec.slug}: its pooling is none of mean, cls and last token. Choose another model"
        )
    return wanted[0]


def _read(files: ModelFiles, name: str) -> Any:
    path = files.folder / name
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(
            f"{files.folder.name}/{name}: not readable as JSON. Fetch the model again"
        ) from error
