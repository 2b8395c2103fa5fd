"""Models of real architectures with random weights, written once at the start: nothing is downloaded.

The card gets the real shapes, a CPU gets small ones of the same architectures.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensemble_assets.compute.backends.forward import ForwardFactory, Precision, Runtime
from ensemble_assets.compute.backends.library.forward import LibraryFactory
from ensemble_assets.compute.backends.library.loading import load_row_maker
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import FolderSource, ModelKind, ModelSpec
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN, network


@dataclass(frozen=True)
class Shape:
    """A published architecture.

    Attributes:
        architecture: its name in the model zoo.
        kind: of model.
        task: head of the network.
        pooling: of dense models, as sentence-transformers calls it.
        options: of the configuration, in its real size.
        megaflops: for a token of a text of a few hundred.
    """

    architecture: str
    kind: ModelKind
    task: Any
    pooling: str
    options: Mapping[str, int]
    megaflops: float


SHAPES = {
    "minilm": Shape(
        "bert", "dense", "encoder", "mean",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}, 23.3,
    ),
    "xlmr-large": Shape(
        "xlmr-long", "dense", "encoder", "cls",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}, 626.0,
    ),
    "qwen3-0.6b": Shape(
        "qwen3", "dense", "encoder", "lasttoken",
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 32768}, 931.0,
    ),
    "qwen2-1.5b": Shape(
        "qwen2", "dense", "encoder", "lasttoken",
        {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "head_dim": 128, "intermediate_size": 8960, "max_position_embeddings": 32768}, 2658.0,
    ),
    "splade-bert": Shape(
        "bert", "sparse", "mlm", "",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "vocab_size": 30522}, 226.0,
    ),
    "reranker-xlmr": Shape(
        "xlmr-long", "rerank", "classifier", "",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
         "num_labels": 1}, 626.0,
    ),
}  # fmt: skip
"""MiniLM, XLM-R-large (bge-m3), Qwen3-Embedding-0.6B, Qwen2-1.5B (jina-code), BERT-base (SPLADE), XLM-R as reranker."""

GROUPED = ("qwen3-0.6b", "qwen2-1.5b")
"""Shapes with fewer key heads than query heads."""


def model(name: str, root: Path, *, small: bool, device: str = "cpu") -> tuple[ModelSpec, ModelFiles]:
    """Write a model's files unless they are there; spec and files.

    Args:
        name: of ``SHAPES``.
        root: folder of all models.
        small: whether to make a network of two layers.
        device: where random numbers are drawn.
    """
    shape, folder = SHAPES[name], root / f"{name}-{'small' if small else 'real'}"
    labels = {"num_labels": 1} if shape.kind == "rerank" else {}
    options: dict[str, Any] = dict(labels) if small else dict(shape.options)
    if not (folder / "config.json").is_file():
        with torch.device(device):
            made, tokenizer = network(shape.architecture, shape.task, **options)
        if not small:
            scale = (HIDDEN / int(shape.options["hidden_size"])) ** 0.5
            with torch.no_grad():
                for weights in made.parameters():
                    if weights.ndim >= 2:
                        weights.mul_(scale)  # as large activations as in the small network
        made.to(torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if shape.kind == "dense":
            _write_pooling(folder, int(made.config.hidden_size), shape.pooling)
    config = json.loads((folder / "config.json").read_text())
    width = {"dense": config["hidden_size"], "sparse": config["vocab_size"], "rerank": 1}[shape.kind]
    spec = ModelSpec(
        name, shape.kind, f"acceptance/{name}", FolderSource(str(folder)), width, 8192,
        {"dense": "mean", "sparse": "splade_max", "rerank": "cross_encoder"}[shape.kind], "none",  # type: ignore[arg-type]
    )  # fmt: skip
    return spec, ModelFiles(folder, "local", f"{zlib.crc32(folder.name.encode()):08x}")


def _write_pooling(folder: Path, width: int, pooling: str) -> None:
    types = "sentence_transformers.models"
    steps = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": number, "name": name, "path": path, "type": f"{types}.{kind}"}
        for number, (name, path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{mode}": mode == modes[pooling] for mode in modes.values()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **flags}))


def factory(spec: ModelSpec, files: ModelFiles, precision: Precision, *, packed: bool = False) -> ForwardFactory:
    """The factory that a run on a GPU would use."""
    maker = load_row_maker(spec, files)
    texts: list[Any] = [("a", "a"), ("a", "a b c")] if spec.kind == "rerank" else ["a", "a b c"]
    maker.rows(texts, "document")
    traits = ModelTraits(tokens="fast", body=spec.pooling, layouts=dict(maker.layouts))
    splade = spec.kind == "sparse"
    top_k = 256 if splade else 0
    return LibraryFactory(spec, files, Runtime(precision, packed=packed), "reference", traits, top_k, tiled=splade)
