"""Load a model with sentence-transformers, from files on this machine only, and refuse what would not be that model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.model import LibraryModel
from ensemble_assets.compute.backends.torch_runtime import (
    DTYPES,
    is_out_of_memory,
    quiet_transformers,
    resolve_precision,
)
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.refused_layouts import json_fields, read_json
from ensemble_assets.models.spec import ModelSpec, may_run_code

_CLASSES = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}
_MANY_VECTORS = "MultiVectorEncoder"
_HEADS = ("classifier", "score")
"""Names of the classification head in transformers' models; it runs in fp32, since half-precision logits tie."""

_FROM_PRETRAINED: Any = PreTrainedModel.__dict__["from_pretrained"]
_LOADING = Lock()
"""Held while ``from_pretrained`` is watched: two threads may load at once."""


def load_library_model(
    spec: ModelSpec, files: ModelFiles, runtime: Runtime, device: str, *, empty: bool = False
) -> LibraryModel:
    """Load a model in evaluation mode on ``device``.

    The spec decides the class, the length limit, and whether the model's own code may run. The runtime's precision
    becomes the weights' dtype. With ``empty`` networks are left without weights, for preprocessing only.

    Raises:
        ModelUnavailableError: if sentence-transformers cannot load it, if its files lack weights, which would be
            random, or if it has another number of labels than one.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    import sentence_transformers

    precision, may_run = resolve_precision(runtime.precision, device, files.folder), may_run_code(spec)
    many = spec.is_colbert
    make = getattr(sentence_transformers, _MANY_VECTORS if many else _CLASSES[spec.kind])
    try:
        with quiet_transformers(), _networks_loaded(empty) as missing:
            model: Any = make(
                str(files.folder), device="meta" if empty else device, local_files_only=True,
                trust_remote_code=may_run, model_kwargs={"dtype": DTYPES[precision]},
            )  # fmt: skip
    except Exception as error:
        # the files of a user's choice decide which classes of three libraries are made, and these raise what they like
        if is_out_of_memory(error):
            raise DeviceOutOfMemoryError(f"{spec.slug}: its weights do not fit on {device}") from None
        if "trust_remote_code" in str(error) and not spec.trust_remote_code:
            raise ModelUnavailableError(
                f"{spec.slug}: runs code of its own, which is not allowed. Choose another model, or pin a full commit "
                "and set trust_remote_code in a models file (docs/models.md)"
            ) from error
        line = str(error).partition("\n")[0].replace(str(files.folder), files.folder.name)
        raise ModelUnavailableError(
            f"{spec.slug}: sentence-transformers cannot load it as a {_MANY_VECTORS if many else spec.kind + ' model'} "
            f"({type(error).__name__}: {line}). Choose another model or revision"
        ) from error
    if problem := _problem(model, spec, files, missing):
        raise ModelUnavailableError(f"{spec.slug}: {problem}")
    if many:  # queries keep their own length
        limits = (spec.max_tokens, getattr(model[0], "document_length", None))
        model[0].document_length = min(filter(None, limits), default=None)
    elif spec.max_tokens and (model.max_seq_length is None or spec.max_tokens < model.max_seq_length):
        model.max_seq_length = spec.max_tokens
    model.eval().requires_grad_(False)
    _finish_in_fp32(model, precision)
    return LibraryModel(model, spec)


def _problem(model: Any, spec: ModelSpec, files: ModelFiles, missing: list[str]) -> str:
    """Say why a model that sentence-transformers loaded is not run; empty where it is."""
    words = getattr(model, "tokenizer", None)
    if isinstance(words, PreTrainedTokenizerBase) and words.vocab_size <= len(words.all_special_tokens):
        return (
            "has no vocabulary among its files, so that every text would look the same. Add the files of its "
            "tokenizer, or choose another model"
        )
    # only an encoder's unused pooler may be missing
    needed = sorted(name for name in missing if spec.kind == "rerank" or "pooler." not in name)
    if needed:
        return (
            f"its weights lack {needed[0]} and {len(needed) - 1} more that a {spec.kind} model needs. Choose a "
            "checkpoint made for this"
        )
    made, modules = {type(module).__name__ for module in model.children()}, files.folder / "modules.json"
    if "SparseAutoEncoder" in made and not modules.is_file():
        return (
            "its weights lack a masked language model's output layer, for which sentence-transformers puts a random "
            "one. Choose a checkpoint made for sparse vectors"
        )
    stanford = "HF_ColBERT" in str(json_fields(files.folder / "config.json").get("architectures"))
    if spec.is_colbert and "Dense" in made and "Dense" not in str(read_json(modules)) and not stanford:
        return (
            "its weights lack the projection of its token vectors, for which sentence-transformers puts a random one. "
            "Choose a checkpoint made for late interaction"
        )
    if spec.kind == "rerank" and model.num_labels != 1:
        return f"has {model.num_labels} labels; a reranker has one. Choose another model"
    return ""


@contextmanager
def _networks_loaded(empty: bool) -> Iterator[list[str]]:
    """Collect the names of weights that transformers finds in no file while it loads networks in this block.

    sentence-transformers does not ask for them, so the class method is replaced meanwhile. With ``empty`` it makes the
    network of the configuration on torch's ``meta`` device, which takes no memory.
    """
    missing: list[str] = []

    def watched(cls: Any, *arguments: Any, **options: Any) -> Any:
        if empty and isinstance(options.get("config"), PreTrainedConfig):
            with torch.device("meta"):
                return cls(options["config"])
        network, report = _FROM_PRETRAINED.__func__(cls, *arguments, **{**options, "output_loading_info": True})
        missing.extend(map(str, report["missing_keys"]))
        return network

    with _LOADING:
        PreTrainedModel.from_pretrained = classmethod(watched)
        try:
            yield missing
        finally:
            PreTrainedModel.from_pretrained = _FROM_PRETRAINED


@lru_cache(maxsize=1)
def load_row_maker(spec: ModelSpec, files: ModelFiles) -> LibraryModel:
    """Load a model for its preprocessing only; the last one stays, since chunks, queries and pairs come apart."""
    return load_library_model(spec, files, Runtime(precision="fp32"), "cpu", empty=True)


def _finish_in_fp32(model: Any, precision: str) -> None:
    """Run pooling, projections, norms and classification heads in fp32, whatever the network's dtype is."""
    if precision == "fp32":
        model.float()
        return
    first, *rest = model.children()
    for module in rest:
        module.float()
    first.register_forward_hook(lambda _, __, features: {name: _wide(value) for name, value in features.items()})
    for head in (getattr(getattr(first, "model", None), name, None) for name in _HEADS):
        if isinstance(head, torch.nn.Module):
            head.float().register_forward_pre_hook(lambda _, arguments: tuple(map(_wide, arguments)))


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
