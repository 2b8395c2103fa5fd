"""Recognise published layouts that are not run, by their files, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.spec import ModelSpec

_CLASSES = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}
"""What ``config_sentence_transformers.json`` calls the models of a kind; older files do not say it."""

_MANY_VECTORS = ("MultiVectorEncoder", "ColBERT")
"""What that file calls ColBERT models, by sentence-transformers and by PyLate."""

_OTHER_WEIGHTS = {
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".xml": "OpenVINO",
    ".tflite": "TensorFlow Lite",
}
"""Formats of weights that are not read, by the ends of file names."""


def refuse_layout(spec: ModelSpec, folder: Path) -> None:
    """Refuse a folder whose files say that it is another thing than the model that was asked for.

    sentence-transformers would load some of them as something else: a ColBERT model as the mean of its token states.

    Raises:
        ModelUnavailableError: with what it is.
    """
    asked = _CLASSES["dense" if spec.pooling == "late_interaction" else spec.kind]
    first = _first_module(folder)
    config, adapter = (json_fields(first / name) for name in ("config.json", "adapter_config.json"))
    says = json_fields(folder / "config_sentence_transformers.json").get("model_type") or asked
    if adapter:
        base = adapter.get("base_model_name_or_path") or "another model"
        what = f"is a PEFT adapter of {base} and no whole model. Merge the two, and choose the folder of the result"
    elif "vision_config" in config or "image_size" in config:
        what = "reads images (CLIP and the like), which are not supported. Choose a model of texts alone"
    elif has_many_vectors(folder):
        if spec.kind == "rerank":
            return
        what = (
            "is a multi-vector model (ColBERT): a vector per token. Choose a model with one vector per text, and name "
            "this one as models.rerank, which compares its vectors"
        )
    elif says != asked:
        what = f"is a {says} by its files, which a {spec.kind} model is not. Choose it for its own stage"
    else:
        return
    raise ModelUnavailableError(f"{spec.slug}: {what}")


def has_many_vectors(folder: Path) -> bool:
    """Whether a folder's files say that the model makes a vector for each token, as ColBERT does."""
    own = json_fields(folder / "config_sentence_transformers.json")
    architectures = json_fields(_first_module(folder) / "config.json").get("architectures")
    return own.get("model_type") in _MANY_VECTORS or "skiplist_words" in own or "colbert" in str(architectures).lower()


def _first_module(folder: Path) -> Path:
    modules = read_json(folder / "modules.json")
    return folder / str(modules[0].get("path", "")) if isinstance(modules, list) and modules else folder


def without_weights(spec: ModelSpec, names: Iterable[str]) -> ModelUnavailableError:
    """Make the error of a model among whose files are no weights that are read; ``names`` are those files."""
    other = other_weights(names)
    return ModelUnavailableError(
        f"{spec.slug}: no weights (*.safetensors or pytorch_model.bin) among its files"
        f"{other and f', only {other}, which is not read'}. Choose a model or revision that has them"
    )


def other_weights(names: Iterable[str]) -> str:
    """Name the formats of weights that are not read, such as ``GGUF``, among files; empty where there are none."""
    formats = {kind for name in names for end, kind in _OTHER_WEIGHTS.items() if name.endswith(end)}
    return " and ".join(sorted(formats))


def lacks_tokenizer(names: Iterable[str]) -> bool:
    """Whether none of a folder's files holds a vocabulary or names a tokenizer."""
    return not any("token" in name or name.startswith(("vocab", "spiece")) or name.endswith(".model") for name in names)


def read_json(path: Path) -> Any:
    """Read a JSON file; an empty dictionary where there is none, or it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def json_fields(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; an empty one where there is none."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}
