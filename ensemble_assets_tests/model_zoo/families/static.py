"""Dense models that are no single Transformer: static embeddings, routers, and the word models of early versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    BoW,
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    WordEmbeddings,
    WordWeights,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from ensemble_assets_tests.model_zoo.families import vocabularies
from ensemble_assets_tests.model_zoo.families.layout import Build
from ensemble_assets_tests.model_zoo.families.networks import HIDDEN
from ensemble_assets_tests.model_zoo.families.saving import Edit, save, transformer
from ensemble_assets_tests.model_zoo.texts import training_lines


def _table() -> StaticEmbedding:
    """A random vector per word piece."""
    tokenizer = vocabularies.wordpiece().backend_tokenizer
    generator = np.random.default_rng(11)
    return StaticEmbedding(tokenizer, generator.normal(size=(600, HIDDEN)).astype(np.float32))


def static(*, normalize: bool = False, edits: Sequence[Edit] = (), **model: Any) -> Build:
    """Make the builder of a StaticEmbedding model."""

    def build(folder: Path) -> None:
        modules = [_table(), *([Normalize()] if normalize else [])]
        save(SentenceTransformer(modules=modules, **model), folder, edits)

    return build


def in_folder(name: str) -> Edit:
    """Move the first module's files into the folder that version 3 gave it."""

    def edit(folder: Path) -> None:
        (folder / name).mkdir()
        for file in ("model.safetensors", "tokenizer.json"):
            shutil.move(folder / file, folder / name / file)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0] |= {"path": name, "type": "sentence_transformers.models.StaticEmbedding"}
        (folder / "modules.json").write_text(json.dumps(modules))

    return edit


def as_model2vec(*, quantised: bool = False) -> Edit:
    """Store the table as model2vec does, with its ``config.json``.

    Args:
        quantised: whether several pieces share a row and every piece has a weight, in half precision.
    """

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {"embeddings": load_file(path)["embedding.weight"]}
        if quantised:
            torch.manual_seed(3)
            rows = len(tensors["embeddings"])
            tensors = {
                "embeddings": tensors["embeddings"][:200].half(),
                "mapping": torch.arange(rows) % 200,
                "weights": torch.rand(rows, dtype=torch.float64),
            }
        save_file(tensors, path)
        settings = {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "normalize": True,
            "hidden_dim": HIDDEN,
        }
        (folder / "config.json").write_text(json.dumps(settings))

    return edit


def router(query: Callable[[], list[Any]], document: Callable[[], list[Any]], **model: Any) -> Build:
    """Make the builder of a model whose queries and documents take different ways."""

    def build(folder: Path) -> None:
        routes = Router.for_query_document(query_modules=query(), document_modules=document())
        save(SentenceTransformer(modules=[routes, Normalize()], **model), folder)

    return build


def encoder_route(name: str, pooling: str = "mean") -> Callable[[], list[Any]]:
    """A route through a Transformer and pooling."""
    return lambda: [transformer(name, "encoder"), Pooling(HIDDEN, pooling)]


def static_route() -> list[Any]:
    """A route through static embeddings and a projection."""
    torch.manual_seed(5)
    return [_table(), Dense(HIDDEN, HIDDEN, activation_function=torch.nn.Identity())]


def shared_then_routed(folder: Path) -> None:
    """Build one encoder for both sides, with a projection for queries and another for documents."""
    torch.manual_seed(6)
    routes = Router.for_query_document(
        query_modules=[Dense(HIDDEN, 32)], document_modules=[Dense(HIDDEN, 32, activation_function=torch.nn.Identity())]
    )
    save(SentenceTransformer(modules=[transformer("bert", "encoder"), Pooling(HIDDEN), routes, Normalize()]), folder)


def _words() -> list[str]:
    """The distinct words of the training lines, padding first."""
    words = sorted({word.strip(".,;()'\"").lower() for line in training_lines() for word in line.split()} - {""})
    return ["PADDING_TOKEN", *words[:400]]


def _word_table() -> WordEmbeddings:
    vocabulary = _words()
    values = np.random.default_rng(12).normal(size=(len(vocabulary), HIDDEN)).astype(np.float32)
    return WordEmbeddings(WhitespaceTokenizer(vocabulary, do_lower_case=True), values)


def word_embeddings(*, weights: bool = False, lstm: bool = False) -> Build:
    """Make the builder of a GloVe-like model: a table of words and mean pooling.

    Args:
        weights: whether words are weighted (inverse document frequencies).
        lstm: whether an LSTM runs over the words.
    """

    def build(folder: Path) -> None:
        torch.manual_seed(8)
        modules: list[Any] = [_word_table()]
        width = HIDDEN
        if weights:
            words = _words()
            idf = {word: 1.0 + (len(word) % 7) / 3 for word in words}
            modules.append(WordWeights(words, idf, unknown_word_weight=2.0))
        if lstm:
            modules.append(LSTM(HIDDEN, 24))
            width = 48
        save(SentenceTransformer(modules=[*modules, Pooling(width), Normalize()]), folder)

    return build


def bag_of_words(folder: Path) -> None:
    """Build a bag-of-words model: a dimension per word, and a projection."""
    torch.manual_seed(9)
    words = _words()[1:301]
    bag = BoW(words, {word: 1.0 + (len(word) % 5) / 2 for word in words})
    save(SentenceTransformer(modules=[bag, Dense(len(words), HIDDEN), Normalize()]), folder)
