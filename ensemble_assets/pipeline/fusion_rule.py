"""How a run fuses its lists: as the settings say, or as weights that were fitted on training judgements say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.retrieval.fusion import METHODS, FusionMethod
from ensemble_assets.retrieval.fusion_weights import read_weights
from ensemble_assets.settings.options import Fusion


@dataclass(frozen=True)
class FusionRule:
    """Method and weights of one run.

    Attributes:
        method: of ``METHODS``.
        dense_share: weight of the dense list against the sparse one, 0 to 1.
        lexical_share: weight of the BM25 list, 0 to 1; the other two divide the rest.
        fitted: what the weights were fitted on, for the manifest; empty where they were set.
    """

    method: FusionMethod
    dense_share: float
    lexical_share: float
    fitted: dict[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """By list. Twice the share, so that equal shares leave RRF's textbook score ``1 / (k + rank)`` as it is."""
        rest = 2 * (1 - self.lexical_share)
        return {
            "dense": rest * self.dense_share,
            "sparse": rest * (1 - self.dense_share),
            "lexical": 2 * self.lexical_share,
        }


def fusion_rule(options: Fusion, collection: str) -> FusionRule:
    """The rule for a collection.

    Raises:
        SettingsError: if ``fusion.weights_file`` is missing, or of another collection.
        InputError: if it cannot be read.
    """
    name, share, lexical, fitted = options.method, options.dense_weight, options.lexical_share, dict[str, Any]()
    if options.weights_file:
        weights = read_weights(Path(options.weights_file), collection)
        name, share, lexical = weights.method, weights.dense_weight, weights.lexical_share
        fitted = weights.facts()
    method = METHODS[name](options.rrf_k) if name == "rrf" else METHODS[name]()
    return FusionRule(method, share, lexical, fitted)
