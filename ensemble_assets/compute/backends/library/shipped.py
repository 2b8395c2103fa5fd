"""State the traits of the embedded profile's models, so that a run of them probes nothing and loads no torch.

The tests describe each of them anew, and compare every fast path of it with the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout
from ensemble_assets.models.spec import Pooling

_BERT = FeatureLayout({"input_ids": 0, "token_type_ids": 0, "attention_mask": 0}, {"modality": "text"})
_ENCODER = {"document": _BERT, "query": _BERT}
_NO_PROMPTS = {"document": "", "query": ""}

_MINILM = ModelTraits(384, 256, _NO_PROMPTS, 384, tokens="fast", body="mean", layouts=_ENCODER)
_SPLADE = ModelTraits(30522, 256, _NO_PROMPTS, 128, "dot", tokens="fast", body="splade_max", layouts=_ENCODER)
_RERANKER = ModelTraits(1, 160, width=128, tokens="fast", body="cross_encoder", layouts={"document": _BERT})

SHIPPED: Mapping[tuple[str, Pooling], ModelTraits] = MappingProxyType(
    {
        ("142aee0e6b88c219", "mean"): _MINILM,
        # the network has 512 positions, and only token states are taken
        ("142aee0e6b88c219", "late_interaction"): replace(_MINILM, max_tokens=320),
        ("25dc403c72f65c0d", "splade_max"): _SPLADE,
        ("08fda6dc6a7036aa", "cross_encoder"): _RERANKER,
    }
)
"""Traits of the registered models that come in packages, by the fingerprint of their files and their pooling."""
