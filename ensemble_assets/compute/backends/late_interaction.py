"""Score pairs by late interaction: query and chunk are encoded apart, and their token states are compared.

For every token of the query, take the largest cosine with a token of the chunk, count a negative one as 0, and square
it. The score is the average over the query's tokens. This is ColBERT's score (Khattab and Zaharia, SIGIR 2020,
arXiv 2004.12832) with the mean of squares in place of the sum. Nothing is trained for it: any encoder's states will do.
``docs/decisions/0013`` has the measurements and the reason for squares.

The forward takes the same pairs as a CrossEncoder. ``library.forward`` and ``openvino_forwards`` make the states, which
``library.late_states`` compares on a GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import Forward, OutputSpec
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

CACHE_BYTES = 768 * 2**20
"""Most bytes of states kept for later batches: about 4,000 chunks of 256 tokens with states of width 384."""

SCORES: Mapping[str, OutputSpec] = MappingProxyType({"logit": OutputSpec((), "float32")})
"""Outputs of a late-interaction forward: a score per pair, under the name of a CrossEncoder's output."""

Ids = NDArray[np.int32]
States = NDArray[np.float16]


def split_pair(ids: Ids, second_from: int) -> tuple[Ids, Ids]:
    """Split the ids of a pair, ``[CLS] A [SEP] B [SEP]``, into ``[CLS] A [SEP]`` and ``[CLS] B [SEP]``."""
    return ids[:second_from], np.concatenate([ids[:1], ids[second_from:]])


def similarity(query: States, chunk: States) -> float:
    """Compute the score of one pair, 0 to 1; NaN if a state is not finite.

    Args:
        query: ``[tokens, width]``, rows of length 1. The first and the last row are of special tokens and do not count.
        chunk: likewise.
    """
    if len(query) < 3 or len(chunk) < 3:
        return 0.0
    cosines = query[1:-1].astype(np.float32) @ chunk[1:-1].astype(np.float32).T
    largest = np.maximum(cosines.max(axis=1), 0.0)
    return float(np.mean(largest * largest))


def refuse_unsuitable(spec: ModelSpec, files: ModelFiles) -> None:
    """Refuse a model whose pairs ``split_pair`` cannot split: token types and special tokens must be as in BERT.

    Raises:
        ModelUnavailableError: if they are different.
    """
    template = load_vocabulary(files).template
    counts = [len(part) for part in (template.pair_before, template.pair_between, template.pair_after)]
    if counts != [1, 1, 1] or not template.second_segment:
        raise ModelUnavailableError(
            f"{spec.slug}: late interaction needs a tokenizer that writes a pair as BERT's does, one special token "
            "before, between and after, and token types. Choose another model"
        )


class StateCache:
    """The states of the most recently used texts, up to a number of bytes: arrays of the host or of a device."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._states: OrderedDict[bytes, Any] = OrderedDict()

    def lookup(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """Return the states that are here, and mark them as just used."""
        cached = {key: self._states[key] for key in keys if key in self._states}
        for key in cached:
            self._states.move_to_end(key)
        return cached

    def add(self, states: Mapping[bytes, Any]) -> None:
        """Add states, and drop the least recently used where there are too many bytes."""
        for key, value in states.items():
            self._states[key] = value
            self._bytes += value.nbytes
        while self._bytes > self._limit:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop all states."""
        self._states.clear()
        self._bytes = 0


class LateInteraction:
    """Scores pairs. Every text of a batch is encoded once, and not again while its states are cached.

    Args:
        encoder: gives ``states`` ``[batch, longest, width] float16``, vectors of length 1.
        cache_bytes: see ``CACHE_BYTES``.
    """

    outputs = SCORES

    def __init__(self, encoder: Forward, cache_bytes: int = CACHE_BYTES) -> None:
        self.precision = encoder.precision
        self._encoder = encoder
        self._cache: StateCache = StateCache(cache_bytes)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if its texts do not fit.
            ModelFailedError: for anything else the encoder raises; carries no text.
            ValueError: if the rows are not pairs.
        """
        if table.second_from is None:
            raise ValueError("late interaction takes pairs")
        pairs = [
            split_pair(table.ids[table.offsets[row] : table.offsets[row + 1]], int(table.second_from[row]))
            for row in batch.rows.tolist()
        ]
        keys = [(query.tobytes(), chunk.tobytes()) for query, chunk in pairs]
        states = self._cache.lookup(dict.fromkeys(key for pair in keys for key in pair))
        for side in (0, 1):  # queries apart from chunks: they are much shorter, and a batch is padded
            texts = {key[side]: pair[side] for key, pair in zip(keys, pairs, strict=True) if key[side] not in states}
            new = self._encoded(texts)
            states |= new
            self._cache.add(new)
        return {"logit": self._scores([(states[query], states[chunk]) for query, chunk in keys])}

    def release(self) -> None:
        """Drop weights and states; the forward is of no use afterwards."""
        self._cache.clear()
        self._encoder.release()

    def _encoded(self, texts: Mapping[bytes, Ids]) -> dict[bytes, Any]:
        if not texts:
            return {}
        offsets = np.append(0, np.cumsum([len(ids) for ids in texts.values()]))
        table = TokenTable(np.concatenate(list(texts.values())), offsets, np.zeros(len(texts), np.bool_))
        batch = Batch(np.arange(len(table)), int(table.lengths.max()))
        return dict(zip(texts, self._states(table, batch), strict=True))

    def _states(self, table: TokenTable, batch: Batch) -> list[Any]:
        """Encode all rows; copies of their states, since views would keep the whole padded batch."""
        raise NotImplementedError

    def _scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float32]:
        raise NotImplementedError


class LateInteractionForward(LateInteraction):
    """Scores pairs on the host."""

    def _states(self, table: TokenTable, batch: Batch) -> list[Any]:
        padded = self._encoder(table, batch)["states"]
        return [padded[row, :length].astype(np.float16) for row, length in enumerate(table.lengths.tolist())]

    def _scores(self, pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float32]:
        return np.array([similarity(*pair) for pair in pairs], np.float32)
