"""Floating-point operations of a transformer, from its shape: what a plan's costs are proportional to.

Shapes come from a model's own ``config.json``, or for models that are not on this machine from what their authors
published. Rates are ``cost_fit``'s business; nothing is loaded here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import ModelKind, ModelSpec

_GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "modernbert", "nomic_bert")
"""Model types whose feed-forward part has three matrices (gate, up, down) instead of two."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes that decide the work per token.

    Attributes:
        hidden: width of token states.
        intermediate: width of the feed-forward part.
        matrices: of the feed-forward part: 2, or 3 where it is gated.
        query_width: heads times head width; ``hidden`` in most models.
        key_value_width: less than ``query_width`` with grouped queries.
        vocabulary: rows of a masked-LM head that is run for every token; 0 without one.
    """

    layers: int
    hidden: int
    intermediate: int
    matrices: int
    query_width: int
    key_value_width: int
    vocabulary: int = 0

    def flops(self, tokens: float, longest_mean: float) -> float:
        """Operations of ``tokens`` tokens in texts of ``longest_mean`` tokens on average; two a multiply-add.

        Linear layers ``2·(2·h·q + 2·h·kv + m·h·i)`` and attention ``4·q·length`` per token and layer (Kaplan et al.
        2020, table 1); a masked-LM head adds ``2·h² + 2·h·V`` per token.
        """
        linear = 2 * self.hidden * (2 * self.query_width + 2 * self.key_value_width + self.matrices * self.intermediate)
        attention = 4 * self.query_width * longest_mean
        head = 2 * self.hidden * (self.hidden + self.vocabulary) if self.vocabulary else 0
        return tokens * (self.layers * (linear + attention) + head)

    @property
    def parameters(self) -> int:
        """Weights of all layers, embeddings left out."""
        attention = 2 * self.hidden * (self.query_width + self.key_value_width)
        return self.layers * (attention + self.matrices * self.hidden * self.intermediate)


def read_shape(folder: Path, kind: ModelKind) -> ModelShape:
    """The shape of a model that is on this machine.

    Raises:
        ModelUnavailableError: if its ``config.json`` does not say.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        hidden = int(config.get("hidden_size") or config["dim"])
        heads = int(config.get("num_attention_heads") or config["n_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        return ModelShape(
            layers=int(config.get("num_hidden_layers") or config["n_layers"]),
            hidden=hidden,
            intermediate=int(config.get("intermediate_size") or config["hidden_dim"]),
            matrices=3 if config.get("model_type") in _GATED else 2,
            query_width=heads * width,
            key_value_width=int(config.get("num_key_value_heads") or heads) * width,
            vocabulary=int(config["vocab_size"]) if kind == "sparse" else 0,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailableError(
            f"{folder.name}: its config.json does not give the sizes of its layers ({type(error).__name__}). "
            "Choose another model"
        ) from None


PUBLISHED: Mapping[str, ModelShape] = MappingProxyType(
    {
        # config.json of the embedded models; a test compares them with the files
        "all-minilm-l6-v2": ModelShape(6, 384, 1536, 2, 384, 384),
        "splade-tiny": ModelShape(2, 128, 512, 2, 128, 128, vocabulary=30522),
        "ensemble-reranker-tiny": ModelShape(2, 128, 512, 2, 128, 128),
        "minilm-late-interaction": ModelShape(6, 384, 1536, 2, 384, 384),
        # config.json of BAAI/bge-m3 and BAAI/bge-reranker-v2-m3 (XLM-RoBERTa large)
        "bge-m3": ModelShape(24, 1024, 4096, 2, 1024, 1024),
        "bge-reranker-v2-m3": ModelShape(24, 1024, 4096, 2, 1024, 1024),
        # config.json of Qwen/Qwen3-0.6B, the base of Qwen/Qwen3-Embedding-0.6B
        "qwen3-embedding-0.6b": ModelShape(28, 1024, 3072, 3, 2048, 1024),
        # model card of Qwen/Qwen2.5-Coder-1.5B, the base of jinaai/jina-code-embeddings-1.5b
        "jina-code-embeddings-1.5b": ModelShape(28, 1536, 8960, 3, 1536, 256),
        # config.json of prithivida/Splade_PP_en_v1 (BERT base)
        "splade-pp-en-v1": ModelShape(12, 768, 3072, 2, 768, 768, vocabulary=30522),
        # config.json of cross-encoder/ms-marco-MiniLM-L6-v2
        "ms-marco-minilm-l6-v2": ModelShape(6, 384, 1536, 2, 384, 384),
    }
)
"""Shapes of the registered models, so that planning needs none of their files."""


def shape_for(spec: ModelSpec) -> ModelShape:
    """The shape of any model: as published, else from its files.

    Raises:
        ModelUnavailableError: if it is neither registered nor on this machine.
    """
    return PUBLISHED.get(spec.slug) or read_shape(locate(spec).folder, spec.kind)


@dataclass(frozen=True)
class PublishedDevice:
    """A device by its data sheet.

    Attributes:
        half_flops: peak of fp16 matrix products, operations per second.
        single_flops: peak of fp32.
        share: of the peak that encoders are taken to reach; an assumption.
        load_bytes: read and moved per second while a model is loaded; an assumption.
        source: where the peaks are from.
    """

    name: str
    half_flops: float
    single_flops: float
    share: float
    load_bytes: float
    source: str


T4 = PublishedDevice(
    "Tesla T4", 65e12, 8.1e12, 0.35, 0.5e9, "NVIDIA T4 data sheet: 65 TFLOPS mixed precision, 8.1 TFLOPS fp32"
)
