"""Run a model's own preprocessing and modules, as sentence-transformers has them: the reference of every backend.

A row is one text, or one (query, chunk) pair, as the arrays that the model's ``preprocess`` gives for it, without
padding. The same rows can then be padded and batched by the batch planner in any order.
https://sbert.net/docs/package_reference/base/Module.html describes modules and their features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError, StageError, failure_word
from ensemble_assets.compute.backends.torch_runtime import quiet_transformers
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout
from ensemble_assets.compute.tokens.token_tables import TASKS, Batch, TokenTable, join_tables, with_task
from ensemble_assets.models.spec import ModelSpec

Task = Literal["document", "query"]
Features = dict[str, Any]

_TEXTS_AT_ONCE = 256
"""Texts of one ``preprocess`` call: its padded arrays stay under a few megabytes at 512 tokens a text."""

EXPANSION = "query_expansion_positions"
"""The feature that marks tokens which expand a query; they may be masked and be compared nevertheless."""

_PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which ``encode_query`` and ``encode_document`` look for a prompt, in order."""


class LibraryModel:
    """A sentence-transformers model on a device.

    Attributes:
        model: ``SentenceTransformer``, ``SparseEncoder``, ``CrossEncoder`` or ``MultiVectorEncoder``.
        spec: kind, limits and prompts that were asked for.
        layouts: by task, known once rows of the task were made.
    """

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.model = model
        self.spec = spec
        self.layouts: dict[str, FeatureLayout] = {}

    @property
    def max_tokens(self) -> int:
        """Tokens that the model reads of a text, special tokens included; 0 without a limit."""
        limit = self.model.max_seq_length
        return int(limit) if limit is not None and np.isfinite(limit) else 0

    def limit(self, task: str) -> int:
        """Tokens that the model reads of a text of a task; 0 without a limit."""
        first: Any = self.model[0]
        expansion: Any = (getattr(first, "query_expansion", None) if task == "query" else None) or {}
        own = expansion["length"] if expansion.get("strategy") == "fixed" else getattr(first, f"{task}_length", None)
        return own or self.max_tokens

    def own_prompt(self, task: str) -> str | None:
        """The spec's text in front of a task's texts; None where the model's files decide."""
        return self.spec.query_prefix if task == "query" else self.spec.document_prefix

    def prompt(self, task: str) -> str | None:
        """Text that goes in front: the spec's where it has one, else the one that the model's files name.

        The rule is that of ``encode_query`` and ``encode_document``; a CrossEncoder has its default prompt only.
        """
        own = self.own_prompt(task)
        if own is not None:
            return own or None
        prompts: Mapping[str, str] = self.model.prompts
        names = () if self.spec.kind == "rerank" else _PROMPT_NAMES[task]
        return next((prompts[name] for name in (*names, self.model.default_prompt_name) if name in prompts), None)

    def rows(self, texts: Sequence[Any], task: Task) -> TokenTable:
        """Rows of texts, or of (query, chunk) pairs for a CrossEncoder, as the model reads them.

        ``task`` says which prompt, length limit and network apply. ``ModelUnavailableError`` if the model's features
        are not token-aligned; a ``StageError`` without any text if its preprocessing fails on one.
        """
        blocks: list[TokenTable] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            try:
                blocks.append(self._block(texts[at : at + _TEXTS_AT_ONCE], task))
            except ModelUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, its message may quote the text
                name = failure_word(error)
            else:
                continue
            # outside the handler, so that the original exception is not even attached as context
            raise StageError(f"{self.spec.slug}: its own preprocessing fails on one of {len(texts)} texts ({name})")
        return with_task(join_tables(*blocks), task)

    def run(self, features: Features, task: Task) -> Features:
        """Run the modules; returns the features with ``sentence_embedding`` or ``scores`` among them."""
        words = {} if self.spec.kind == "rerank" else {"task": task}
        if (most := getattr(self.model, "max_active_dims", None)) is not None:
            words["max_active_dims"] = most
        outputs: Features = self.model(features, **words)
        if most is not None:
            from sentence_transformers.util import select_max_active_dims

            outputs["sentence_embedding"] = select_max_active_dims(outputs["sentence_embedding"], most)
        return outputs

    def _preprocess(self, texts: Sequence[Any], task: Task | None, **words: Any) -> Features:
        if self.spec.kind != "rerank":
            words["task"] = task
        features: Features = self.model.preprocess(list(texts), prompt=self.prompt(task or "query"), **words)
        return features

    def _block(self, texts: Sequence[Any], task: Task) -> TokenTable:
        features = self._preprocess(texts, task)
        bag = "offsets" in features
        arrays, lengths = _flat_rows(self.spec.slug, features)
        if task not in self.layouts:
            self.layouts[task] = self._layout(features, task)
        lost, read, limit = np.zeros(len(texts), np.int64), lengths, self.limit(task)
        if (expansion := features.get(EXPANSION)) is not None:
            read = lengths - expansion.sum(dim=1).numpy()
        full = np.flatnonzero(read >= limit) if limit and not bag else np.empty(0, np.int64)
        if len(full):
            whole = [texts[row] for row in full.tolist()]
            as_task = None if expansion is not None else task  # else all rows would be of a fixed width
            options = {"truncation": False, **({} if limit == self.max_tokens else {"max_length": None})}
            with quiet_transformers():
                uncut = self._preprocess(whole, as_task, processing_kwargs={"text": options})
            if "attention_mask" in uncut:
                lost[full] = np.maximum(uncut["attention_mask"].sum(dim=1).numpy() - read[full], 0)
        ids = arrays.pop("input_ids")
        # arrays that the rows' lengths say already are left out
        plain = {"attention_mask": 1, "token_type_ids": 0, EXPANSION: 0}
        arrays = {name: values for name, values in arrays.items() if (values != plain.get(name)).any()}
        return TokenTable(ids, np.append(0, np.cumsum(lengths)), lost > 0, arrays=arrays, lost=lost)

    def _layout(self, features: Features, task: Task) -> FeatureLayout:
        """Read off how the tokenizer pads, from a short and a long text."""
        constants = {name: value for name, value in features.items() if not isinstance(value, torch.Tensor)}
        names = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
        if "offsets" in features:
            return FeatureLayout({"input_ids": 0}, constants, bag=True)
        long = "a b c d e f g h"
        sample = self._preprocess([("a", "a"), ("a", long)] if self.spec.kind == "rerank" else ["a", long], task)
        mask = used_positions(sample)[0]
        aligned = [name for name in names if sample[name].shape == sample["attention_mask"].shape]
        pads = {name: int(sample[name][0][~mask][0]) if not mask.all() else 0 for name in aligned}
        pads |= {name: 0 for name in names if name not in aligned or name == EXPANSION}
        return FeatureLayout(pads, constants, left=not mask.all() and not bool(mask[0]))


def _flat_rows(slug: str, features: Features) -> tuple[dict[str, NDArray[np.int32]], NDArray[np.int64]]:
    """Flatten token-aligned features by name, without padding; return them and the tokens of each row."""
    if "offsets" in features:  # a bag
        ids = features["input_ids"].numpy().astype(np.int32)
        return {"input_ids": ids}, np.diff(features["offsets"].numpy(), append=len(ids))
    mask = features.get("attention_mask")
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    if mask is not None:
        tensors.pop("sentence_lengths", None)  # of older modules: the number of tokens, counted again
    if mask is None or any(value.shape != mask.shape for value in tensors.values()):
        raise ModelUnavailableError(
            f"{slug}: its inputs are not one number per token ({', '.join(tensors)}), which this program does not "
            "batch. Choose another model"
        )
    used: Any = used_positions(features).numpy()
    # a row runs from its first to its last real token; a model may mask tokens in between
    first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    columns = np.arange(used.shape[1])
    inside = (columns >= first[:, None]) & (columns < last[:, None]) & used.any(axis=1)[:, None]
    return {name: value.numpy()[inside].astype(np.int32) for name, value in tensors.items()}, inside.sum(axis=1)


def used_positions(features: Features) -> torch.Tensor:
    """Tell the places of a padded batch that have a vector: tokens, and those that expand a query (ColBERT)."""
    mask: torch.Tensor = features["attention_mask"].bool()
    return mask.logical_or(features[EXPANSION].bool()) if EXPANSION in features else mask


def split_by_task(table: TokenTable, batch: Batch) -> Iterator[tuple[Task, NDArray[np.int64]]]:
    """Yield each task of the batch with the places of its rows in the batch."""
    codes = np.zeros(batch.size, np.uint8) if table.tasks is None else table.tasks[batch.rows]
    for code in np.unique(codes).tolist():
        yield TASKS[code], np.flatnonzero(codes == code)
