"""Late interaction: query and chunk of a pair are encoded apart, and their token states are compared.

The score is that of Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
Interaction over BERT" (SIGIR 2020), with the mean of squares in place of the sum: for every token of the query the
largest cosine with a token of the chunk, negative ones counted as 0, squared, averaged over the query's tokens. Nothing
is trained for it: any encoder's states will do. What was measured and why squares: ``docs/decisions/0013``.

The forward takes the same pairs as a CrossEncoder, so the rerank stage does not know the difference. How states are
made is ``forward_late``'s part for torch and ``openvino_forward``'s for OpenVINO.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import Forward, HasRelease, OutputSpec
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec

KEPT_BYTES = 768 * 2**20
"""States that are kept for later batches, of about 4,000 chunks of 256 tokens where states are 384 wide."""

SCORES: Mapping[str, OutputSpec] = MappingProxyType({"logit": OutputSpec((), "float32")})
"""What a factory's forwards give: a score per pair, under the name that CrossEncoders' have."""

STATES: Mapping[str, OutputSpec] = MappingProxyType({"states": OutputSpec((), "float16")})
"""What their encoders give: ``[batch, longest, width]``, rows of length 1; no caller allocates it."""

Ids = NDArray[np.int32]
States = NDArray[np.float16]


def split_pair(ids: Ids, second_from: int) -> tuple[Ids, Ids]:
    """``open A close B close`` to ``open A close`` and ``open B close``, each ``[tokens] int32``."""
    return ids[:second_from], np.concatenate([ids[:1], ids[second_from:]])


def similarity(query: States, chunk: States) -> float:
    """The score of one pair, 0 to 1; NaN where a state is not finite.

    Args:
        query: ``[tokens, width]``, rows of length 1, the first and the last of special tokens, which do not count.
        chunk: the same.
    """
    if len(query) < 3 or len(chunk) < 3:
        return 0.0
    cosines = query[1:-1].astype(np.float32) @ chunk[1:-1].astype(np.float32).T
    largest = np.maximum(cosines.max(axis=1), 0.0)
    return float(np.mean(largest * largest))


def refuse_unsuitable(spec: ModelSpec, files: ModelFiles) -> None:
    """Pairs are taken apart by their token types and special tokens, so those must be BERT's.

    Raises:
        ModelUnavailableError: if they are not.
    """
    template = load_vocabulary(files).template
    counts = [len(part) for part in (template.pair_before, template.pair_between, template.pair_after)]
    if counts != [1, 1, 1] or not template.second_segment:
        raise ModelUnavailableError(
            f"{spec.slug}: late interaction needs a tokenizer that writes a pair as BERT's does, one special token "
            "before, between and after, and token types. Choose another model"
        )


class KeptStates:
    """The states of the texts that were used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._states: OrderedDict[bytes, States] = OrderedDict()

    def take(self, keys: Iterable[bytes]) -> dict[bytes, States]:
        """Those that are there, which are then the last that were used."""
        found = {key: self._states[key] for key in keys if key in self._states}
        for key in found:
            self._states.move_to_end(key)
        return found

    def keep(self, states: Mapping[bytes, States]) -> None:
        """Add some, and drop those not used for longest where there are too many."""
        for key, value in states.items():
            self._states[key] = value
            self._bytes += value.nbytes
        while self._bytes > self._limit:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop all."""
        self._states.clear()
        self._bytes = 0


class LateInteractionForward:
    """Scores pairs on the host; every text of a batch is encoded once, and not again while its states are kept.

    Args:
        encoder: see ``STATES``.
        kept_bytes: see ``KEPT_BYTES``.
    """

    outputs = SCORES

    def __init__(self, encoder: Forward, kept_bytes: int = KEPT_BYTES) -> None:
        self.precision = str(getattr(encoder, "precision", "fp32"))
        self._encoder = encoder
        self._kept = KeptStates(kept_bytes)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if its texts do not fit.
            ModelFailedError: for anything else the encoder raises; carries no text.
            ValueError: if the rows are no pairs.
        """
        if table.second_from is None:
            raise ValueError("late interaction takes pairs")
        pairs = [
            split_pair(table.ids[table.offsets[row] : table.offsets[row + 1]], int(table.second_from[row]))
            for row in batch.rows.tolist()
        ]
        keys = [(query.tobytes(), chunk.tobytes()) for query, chunk in pairs]
        states = self._kept.take(dict.fromkeys(key for pair in keys for key in pair))
        for side in (0, 1):  # apart, since queries are much shorter
            texts = {key[side]: pair[side] for key, pair in zip(keys, pairs, strict=True) if key[side] not in states}
            made = self._encoded(texts)
            states |= made
            self._kept.keep(made)
        scores = [similarity(states[query], states[chunk]) for query, chunk in keys]
        return {"logit": np.array(scores, np.float32)}

    def release(self) -> None:
        """Drop weights and states; the forward is of no use afterwards."""
        self._kept.clear()
        if isinstance(self._encoder, HasRelease):
            self._encoder.release()

    def _encoded(self, texts: Mapping[bytes, Ids]) -> dict[bytes, States]:
        if not texts:
            return {}
        table = _table(list(texts.values()))
        lengths = table.lengths
        padded = self._encoder(table, Batch(np.arange(len(table)), int(lengths.max())))["states"]
        # copies: a view would keep the whole padded batch
        return {
            key: padded[row, :length].astype(np.float16)
            for row, (key, length) in enumerate(zip(texts, lengths.tolist(), strict=True))
        }


def _table(texts: Sequence[Ids]) -> TokenTable:
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return TokenTable(np.concatenate(texts), offsets, np.zeros(len(texts), np.bool_))
