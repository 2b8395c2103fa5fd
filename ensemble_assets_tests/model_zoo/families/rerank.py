"""Rerankers: classifiers of pairs with their activations, prompts and templates, and language models that say yes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import Dense, LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN, network
from ensemble_assets_tests.model_zoo.families.saving import Edit, save, transformer, write_checkpoint

PAIR_TEMPLATE = (
    "<|im_start|>{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n{% endif %}"
    "{% if message['role'] == 'query' %}<Query>: {{ message['content'] }}\n{% endif %}"
    "{% if message['role'] == 'document' %}<Document>: {{ message['content'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
)
"""A chat template of a query and a document, as Qwen3-Reranker has one; a prompt is the system's message."""


def classifier(
    name: str,
    *,
    labels: int = 1,
    activation: torch.nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    module: Mapping[str, Any] | None = None,
    edits: Sequence[Edit] = (),
    dtype: torch.dtype = torch.float32,
    **model: Any,
) -> Build:
    """Make the builder of a CrossEncoder that is one classifier.

    Args:
        name: of the architecture.
        labels: outputs of the head.
        activation: on the score; None: the library's choice, a sigmoid for one label.
        options: of the network's configuration.
        tokenizer: attributes to set on the tokenizer.
        module: arguments of the Transformer module.
        edits: of the saved files.
        dtype: of the saved weights.
        model: arguments of the CrossEncoder: prompts, default_prompt_name.
    """

    def build(folder: Path) -> None:
        wanted = {"num_labels": labels, **(options or {})}
        first = transformer(name, "classifier", options=wanted, tokenizer=tokenizer, **(module or {}))
        save(CrossEncoder(modules=[first], activation_fn=activation, **model), folder, edits, dtype)

    return build


def plain_classifier(name: str, *, activation: str = "", old_key: bool = False, **options: Any) -> Build:
    """Make the builder of a classifier without ``modules.json``, as all rerankers were before version 6.

    Args:
        name: of the architecture.
        activation: dotted path of its class, in ``config.json``; empty: none is named.
        old_key: whether it stands under the key that version 3 used.
        options: of the network's configuration.
    """

    def build(folder: Path) -> None:
        model, tokenizer = network(name, "classifier", **{"num_labels": 1, **options})
        if activation and old_key:
            model.config.sbert_ce_default_activation_function = activation
        elif activation:
            model.config.sentence_transformers = {"activation_fn": activation, "version": "4.1.0"}
        write_checkpoint(folder, model, tokenizer)

    return build


def yes_or_no(
    *,
    template: str | None = PAIR_TEMPLATE,
    only_yes: bool = False,
    plain: bool = False,
    edits: Sequence[Edit] = (),
    activation: torch.nn.Module | None = None,
    **model: Any,
) -> Build:
    """Make the builder of a language model whose score is how much likelier one word is than another.

    Args:
        template: the chat template that joins query and document; None: they are joined as a pair.
        only_yes: whether the score is the logit of one word.
        plain: whether the files know nothing of sentence-transformers; the words are then "yes" and "no".
        edits: of the saved files.
        activation: on the score.
        model: arguments of the CrossEncoder.
    """

    def build(folder: Path) -> None:
        attributes = {"chat_template": template} if template else {}
        if plain:
            language_model, tokenizer = network("qwen3-reranker", "causal")
            tokenizer.add_tokens(["yes", "no"])
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            write_checkpoint(folder, language_model, tokenizer)
            return
        first = transformer("qwen3-reranker", "causal", tokenizer=attributes)
        yes, no = (first.tokenizer.convert_tokens_to_ids(word) for word in ("y", "n"))
        head = LogitScore(yes, None if only_yes else no)
        save(CrossEncoder(modules=[first, head], activation_fn=activation, **model), folder, edits)

    return build


def pooled_head(*, pooling: str = "cls", labels: int = 1, **model: Any) -> Build:
    """Make the builder of an encoder, pooling and a Dense module that gives the scores.

    Args:
        pooling: of the token states.
        labels: outputs of the last module.
        model: arguments of the CrossEncoder.
    """

    def build(folder: Path) -> None:
        torch.manual_seed(13)
        inner = Dense(HIDDEN, 32)
        outer = Dense(32, labels, activation_function=torch.nn.Identity(), module_output_name="scores")
        modules = [transformer("bert", "encoder"), Pooling(HIDDEN, pooling), inner, outer]
        save(CrossEncoder(modules=modules, **model), folder)

    return build


def modules_with_classifier(folder: Path) -> None:
    """Build an encoder with a head of modules, whose weights come from a checkpoint with a classification head.

    The library loads the encoder of that checkpoint; its classification head must play no part.
    """
    torch.manual_seed(14)
    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place), *network("bert", "classifier", num_labels=1))
        inner = Dense(HIDDEN, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
        first = transformer("bert", "encoder")
        save(CrossEncoder(modules=[first, Pooling(HIDDEN, "mean"), inner]), folder)
        network("bert", "classifier", num_labels=1)[0].save_pretrained(folder)
