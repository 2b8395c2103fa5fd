"""State what a model's own files say of it, as sentence-transformers reads them, and which fast paths it may take.

Traits are read once per model and library version and kept as JSON, so that a run without a new model loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout
from ensemble_assets.models.spec import Pooling

MAXSIM = ("maxsim", "meanmaxsim")
"""How ColBERT models compare the vectors of two texts' tokens: sum or mean of each query token's largest product."""


@dataclass(frozen=True)
class ModelTraits:
    """What sentence-transformers makes of a model's files.

    Attributes:
        dimension: width of its vectors; for sparse models of its index space; 1 for rerankers.
        max_tokens: tokens that it reads of a text or pair; 0 without a limit.
        prompts: text in front of a query or document, by task; absent where there is none.
        width: of the token states, or of a ColBERT model's vectors; 0 where its configuration does not say.
        similarity: ``cosine``, ``dot``, ``euclidean``, ``manhattan`` or one of ``MAXSIM``: how its vectors are meant to
            be compared.
        tokens: ``fast`` where the shared tokeniser gives the same rows as the model's own preprocessing.
        body: pooling word where the model is one transformer with that pooling (``mean``, ``cls``, ``last_token``), a
            masked language model with maximum pooling (``splade_max``), or a classifier with a linear head
            (``cross_encoder``); None where other modules take part. Only such a model has fast backends.
        layouts: features by task.
        head: width of its token states after a linear layer that is theirs alone (bge-m3); 0 without one.
        largest_difference: of this program's batches from the library's own call, for the record.
    """

    dimension: int = 0
    max_tokens: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    similarity: str = "cosine"
    tokens: Literal["fast", "library"] = "library"
    body: Pooling | None = None
    layouts: Mapping[str, FeatureLayout] = field(default_factory=dict)
    largest_difference: float = 0.0
    head: int = 0

    @property
    def by_task(self) -> bool:
        """Whether queries and documents may differ in more than their tokens: networks, or constants of pooling."""
        return self.body is None

    @property
    def compared(self) -> str:
        """How token vectors of two texts are compared: one of ``MAXSIM``, or another word without a head for that."""
        return "meanmaxsim" if self.head else self.similarity

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ModelTraits:
        """Read what ``asdict`` gave."""
        layouts = {task: FeatureLayout(**layout) for task, layout in stored["layouts"].items()}
        return cls(**{**stored, "layouts": layouts})
