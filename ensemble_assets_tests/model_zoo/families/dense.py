"""Dense models: a Transformer with pooling, and what is published around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)

from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN, Task, network
from ensemble_assets_tests.model_zoo.families.saving import Edit, save, transformer, write_checkpoint

Modules = Callable[[], Sequence[torch.nn.Module]]

INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def dense(
    name: str,
    pooling: str | tuple[str, ...] = "mean",
    *,
    normalize: bool = True,
    include_prompt: bool = True,
    before_pooling: Modules = tuple,
    after_pooling: Modules = tuple,
    options: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    module: Mapping[str, Any] | None = None,
    edits: Sequence[Edit] = (),
    dtype: torch.dtype = torch.float32,
    **model: Any,
) -> Build:
    """Make the builder of a Transformer, pooling and what stands around it.

    Args:
        name: of the architecture.
        pooling: one mode, or several that are put side by side.
        normalize: whether a Normalize module is the last one.
        include_prompt: of the pooling: whether the prompt's tokens count.
        before_pooling: makes modules between Transformer and pooling.
        after_pooling: makes modules between pooling and Normalize.
        options: of the network's configuration.
        tokenizer: attributes to set on the tokenizer.
        module: arguments of the Transformer module.
        edits: of the saved files.
        dtype: of the saved weights.
        model: arguments of the SentenceTransformer: prompts, default_prompt_name, truncate_dim, similarity_fn_name.
    """

    def build(folder: Path) -> None:
        first = transformer(name, "encoder", tokenizer=tokenizer, options=options, **(module or {}))
        middle = list(before_pooling())
        width = middle[-1].get_embedding_dimension() if middle else first.get_embedding_dimension()
        torch.manual_seed(len(name))
        modules = [first, *middle, Pooling(width, pooling, include_prompt=include_prompt), *after_pooling()]
        if normalize:
            modules.append(Normalize())
        save(SentenceTransformer(modules=modules, **model), folder, edits, dtype)

    return build


def plain_checkpoint(name: str, task: Task = "encoder") -> Build:
    """Make the builder of a checkpoint that knows nothing of sentence-transformers: no ``modules.json``."""

    def build(folder: Path) -> None:
        write_checkpoint(folder, *network(name, task))

    return build


def causal_checkpoint(name: str, **options: Any) -> Edit:
    """Replace weights and configuration by those of a language model, whose encoder sentence-transformers takes."""

    def edit(folder: Path) -> None:
        model, _ = network(name, "causal", tie_word_embeddings=True, **options)
        model.to(torch.bfloat16).save_pretrained(folder)

    return edit


def modules(*makers: Callable[[], torch.nn.Module]) -> Modules:
    """Make seeded modules, when the model is built."""

    def make() -> list[torch.nn.Module]:
        torch.manual_seed(7)
        return [maker() for maker in makers]

    return make


def projection(width: int, outwards: int, *, bias: bool = True, tanh: bool = True, **options: Any) -> Modules:
    """One Dense module, with Tanh or without an activation."""
    activation = torch.nn.Tanh() if tanh else torch.nn.Identity()
    return modules(lambda: Dense(width, outwards, bias=bias, activation_function=activation, **options))


def two_projections() -> Modules:
    """EmbeddingGemma's pair of Dense modules: four times wider and back, without biases or activations."""
    wide = HIDDEN * 4
    return modules(
        lambda: Dense(HIDDEN, wide, bias=False, activation_function=torch.nn.Identity()),
        lambda: Dense(wide, HIDDEN, bias=False, activation_function=torch.nn.Identity()),
    )


def layer_norm() -> Modules:
    """A LayerNorm module whose gains and biases are not those of a new one."""

    def make() -> torch.nn.Module:
        module = LayerNorm(HIDDEN)
        torch.nn.init.normal_(module.norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(module.norm.bias, 0.0, 0.3)
        return module

    return modules(make)


def convolution() -> Modules:
    """A CNN over token states, from before Transformers took over."""
    return modules(lambda: CNN(HIDDEN, out_channels=16, kernel_sizes=[1, 3, 5]))


def layer_mixture() -> Modules:
    """A weighted mean over the layers' states."""
    weights = torch.nn.Parameter(torch.tensor([0.2, 0.3, 0.5]))
    return modules(lambda: WeightedLayerPooling(HIDDEN, num_hidden_layers=2, layer_start=0, layer_weights=weights))


def normalize_first() -> Modules:
    """A Normalize module in front of a Dense module."""
    return modules(Normalize, lambda: Dense(HIDDEN, 48, activation_function=torch.nn.Identity()))


def dropout() -> Modules:
    """A Dropout module, which does nothing in use."""
    return modules(lambda: Dropout(0.2))
