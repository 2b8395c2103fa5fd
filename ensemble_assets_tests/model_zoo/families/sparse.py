"""Sparse models: SPLADE in its variants, queries without inference, and sparse codes of dense vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SparseStaticEmbedding, SpladePooling

from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN, Task, network
from ensemble_assets_tests.model_zoo.families.saving import Edit, save, transformer, write_checkpoint


def splade(
    name: str,
    *,
    strategy: str = "max",
    activation: str = "relu",
    chunk_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    module: Mapping[str, Any] | None = None,
    edits: Sequence[Edit] = (),
    dtype: torch.dtype = torch.float32,
    **model: Any,
) -> Build:
    """Make the builder of a masked language model with SPLADE pooling.

    Args:
        name: of the architecture.
        strategy: ``max`` or ``sum``.
        activation: ``relu`` or ``log1p_relu``.
        chunk_size: tokens that are pooled at once.
        options: of the network's configuration.
        tokenizer: attributes to set on the tokenizer.
        module: arguments of the Transformer module.
        edits: of the saved files.
        dtype: of the saved weights.
        model: arguments of the SparseEncoder: prompts, max_active_dims, similarity_fn_name.
    """

    def build(folder: Path) -> None:
        first = transformer(name, "mlm", options=options, tokenizer=tokenizer, **(module or {}))
        pooling = SpladePooling(strategy, activation, chunk_size=chunk_size)
        save(SparseEncoder(modules=[first, pooling], **model), folder, edits, dtype)

    return build


def plain(name: str, task: Task = "mlm") -> Build:
    """Make the builder of a masked language model, or of an encoder, without ``modules.json``."""

    def build(folder: Path) -> None:
        write_checkpoint(folder, *network(name, task))

    return build


def without_query_inference(
    name: str, *, activation: str = "log1p_relu", idf_file: bool = False, **model: Any
) -> Build:
    """Make the builder of OpenSearch's layout: a weight per word for queries, SPLADE for documents.

    Args:
        name: of the documents' architecture.
        activation: of the documents' pooling.
        idf_file: whether the weights are read from an ``idf.json`` in the repository when it is built.
        model: arguments of the SparseEncoder.
    """

    def build(folder: Path) -> None:
        documents = transformer(name, "mlm")
        words = documents.tokenizer.get_vocab()
        weights = {word: 0.5 + (number % 13) / 4 for word, number in words.items()}
        if idf_file:
            (folder / "idf.json").write_text(json.dumps(weights))
            table = SparseStaticEmbedding.from_json(str(folder / "idf.json"), documents.tokenizer, frozen=True)
        else:
            values = torch.tensor([weights[word] for word, _ in sorted(words.items(), key=lambda item: item[1])])
            table = SparseStaticEmbedding(documents.tokenizer, values)
        routes = Router.for_query_document(
            query_modules=[table], document_modules=[documents, SpladePooling("max", activation)]
        )
        save(SparseEncoder(modules=[routes], similarity_fn_name="dot", **model), folder)

    return build


def static_both_sides(folder: Path) -> None:
    """Build a model that looks a weight per word up, for queries and documents alike."""
    tokenizer = transformer("bert", "mlm").tokenizer
    torch.manual_seed(4)
    save(SparseEncoder(modules=[SparseStaticEmbedding(tokenizer, torch.rand(len(tokenizer)) + 0.1)]), folder)


def sparse_codes(*, k: int = 16, normalize: bool = False, pooling: str = "mean", **model: Any) -> Build:
    """Make the builder of CSR: the ``k`` largest of 256 codes of a pooled encoder.

    Args:
        k: codes that stay.
        normalize: whether the encoder's vector is normalised first.
        pooling: of the encoder.
        model: arguments of the SparseEncoder.
    """

    def build(folder: Path) -> None:
        torch.manual_seed(10)
        codes = SparseAutoEncoder(HIDDEN, hidden_dim=256, k=k, k_aux=32, normalize=normalize)
        torch.nn.init.normal_(codes.pre_bias, 0.0, 0.1)
        torch.nn.init.normal_(codes.latent_bias, 0.0, 0.1)
        save(SparseEncoder(modules=[transformer("bert", "encoder"), Pooling(HIDDEN, pooling), codes], **model), folder)

    return build
