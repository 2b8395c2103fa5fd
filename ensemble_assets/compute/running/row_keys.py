"""A key per row of a token table: equal keys, equal inputs of the model. What is kept under keys is ``row_store``.

Keyed hashes, since token ids are the text in another form: without the store's secret nobody can try texts out.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import TokenTable

Keys = NDArray[np.uint64]
"""``[n, 2] uint64``: 128 bits a row."""


def row_keys(table: TokenTable, secret: bytes) -> Keys:
    """BLAKE2b-128 of every row's token ids and segments, under ``secret`` (at most 64 bytes)."""
    digests = bytearray()
    ids, bounds = np.ascontiguousarray(table.ids), table.offsets.tolist()
    seconds = [0] * len(table) if table.second_from is None else table.second_from.tolist()
    for start, stop, second in zip(bounds[:-1], bounds[1:], seconds, strict=True):
        digest = hashlib.blake2b(second.to_bytes(4, "little"), digest_size=16, key=secret)
        digest.update(ids[start:stop].data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)
