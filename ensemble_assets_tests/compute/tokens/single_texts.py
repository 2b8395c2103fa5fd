"""Tokenise single texts in one call, as tests and benchmarks want them."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ensemble_assets.compute.tokens.token_tables import TokenTable, single_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import ModelFiles


def tokenise(texts: pl.Series | Iterable[str], files: ModelFiles, max_tokens: int) -> TokenTable:
    """Token ids as the model takes them: special tokens on, cut at ``max_tokens``, not padded."""
    vocabulary = load_vocabulary(files)
    return single_table(tokenise_bodies(texts, vocabulary, max_tokens), vocabulary.template, max_tokens)
