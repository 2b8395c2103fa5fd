"""Fitted fusion weights as a small text file, with what they were fitted on. Fitting is ``retrieval.fit_weights``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import InputError, SettingsError

_VERSION = 1


@dataclass(frozen=True)
class FusionWeights:
    """Fitted weights of the lists, and what they were fitted on.

    Attributes:
        collection: whose training judgements they were fitted on; only its runs take them.
        method: fusion method.
        dense_weight: weight of the dense list against the sparse one, 0 to 1.
        lexical_share: weight of the BM25 list, 0 to 1; the other two divide the rest.
        quality: nDCG@10 of these weights on the training judgements (optimistic: chosen on them).
        equal_quality: nDCG@10 of equal weights on the same.
        training_queries: queries with a relevant training judgement.
        training_qrels_sha256: of the file of training judgements.
    """

    collection: str
    method: str
    dense_weight: float
    lexical_share: float
    quality: float
    equal_quality: float
    training_queries: int
    training_qrels_sha256: str

    def facts(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return asdict(self)


def write_weights(path: Path, weights: FusionWeights) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write((json.dumps({"version": _VERSION, **asdict(weights)}, indent=1) + "\n").encode())


def read_weights(path: Path, collection: str) -> FusionWeights:
    """The weights in a file that ``fit-fusion`` wrote for this collection.

    Raises:
        SettingsError: if there is no such file, or it is of another collection.
        InputError: if it is not one.
    """
    if not path.is_file():
        raise SettingsError(f"fusion.weights_file: {path} is not a file. Make one with: ensemble-assets fit-fusion")
    try:
        content = json.loads(path.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError
        weights = FusionWeights(**content)
        if not all(0.0 <= float(one) <= 1.0 for one in (weights.dense_weight, weights.lexical_share)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            path.name, "is not a file of fitted fusion weights", "Make one with: ensemble-assets fit-fusion"
        ) from None
    if weights.collection != collection:
        raise SettingsError(
            f"fusion.weights_file: {path.name} was fitted on collection {weights.collection}, not {collection}. "
            "Fit weights for this collection, or leave the option empty"
        )
    return weights
