"""The recipes a student can be trained by, as rows of a table. Every number that decides the weights stands here.

Reading data, mining, losses and the loop are other modules; they take a ``Recipe`` and add no number of their own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType

from ensemble_assets.common.errors import SettingsError

Number = str | int | float


@dataclass(frozen=True)
class Recipe:
    """Everything that, together with the data, the seed and the library versions, determines the trained weights.

    Attributes:
        name: key in ``RECIPES`` and name of the student.
        body: registered model whose encoder weights the student starts from.
        layers: encoder layers taken from the body, counted from the input.
        hidden_size: width of the body; checked, so that a row says what it makes.
        max_tokens: tokens per pair during training, special tokens included; the passage is cut.
        max_query_tokens: tokens of a query that are kept, special tokens excluded.
        passages_per_query: length of one training list.
        hard_passages: how many of the list come from the first ``hard_depth`` ranks of the teacher.
        hard_depth: ranks that count as hard.
        mid_passages: how many come from the ranks between ``hard_depth`` and ``pool_depth``; the rest is random.
        pool_depth: ranks kept per query when mining.
        queries_per_step: lists per optimiser step.
        micro_batch: pairs per forward; the pairs of a step are sorted by length before they are cut into these.
        steps: optimiser steps, as many as fit into three hours of two cores; the learning-rate schedule depends on this
            and not on time.
        learning_rate: peak of AdamW's learning rate: linear warm-up, then cosine decay to zero.
        warmup_share: share of the steps that warm up.
        weight_decay: AdamW's decoupled weight decay, on matrices only.
        dense_weight: weight of the dense model in the teacher; the sparse model has the rest.
        temperature: divides the teacher's scores, which are in [0, 1] per query.
        labels_from: share of the steps after which the labels join the loss.
        label_weight: weight of the listwise cross-entropy on the labels.
        residual_weight: weight of the same cross-entropy on student plus teacher scores.
        false_negative_margin: an unlabelled passage whose teacher score is above the positive's by more than this
            is probably relevant too: it takes no part in the label losses.
        label_rank_limit: a query whose positive the teacher ranks below this gives no label loss: most of those
            questions cannot be understood without their passage.
        sentence_queries: sentences taken as extra, unlabelled queries from each passage.
        held_out_share: share of the passages whose queries are the development set.
    """

    name: str
    body: str
    layers: int
    hidden_size: int
    max_tokens: int = 160
    max_query_tokens: int = 48
    passages_per_query: int = 8
    hard_passages: int = 4
    hard_depth: int = 20
    mid_passages: int = 2
    pool_depth: int = 100
    queries_per_step: int = 32
    micro_batch: int = 64
    steps: int = 2000
    learning_rate: float = 3e-4
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    dense_weight: float = 0.5
    temperature: float = 0.1
    labels_from: float = 0.5
    label_weight: float = 0.2
    residual_weight: float = 0.2
    false_negative_margin: float = 0.1
    label_rank_limit: int = 50
    sentence_queries: int = 2
    held_out_share: float = 0.03

    def as_json(self) -> dict[str, Number]:
        """The row as a plain dictionary."""
        return asdict(self)


_ROWS = (
    Recipe(name="tiny-2x128", body="splade-tiny", layers=2, hidden_size=128),
    Recipe(
        name="small-3x384",
        body="all-minilm-l6-v2",
        layers=3,
        hidden_size=384,
        micro_batch=32,
        steps=1500,
        learning_rate=1e-4,
    ),
    Recipe(
        name="small-6x384",
        body="all-minilm-l6-v2",
        layers=6,
        hidden_size=384,
        micro_batch=32,
        steps=1000,
        learning_rate=6e-5,
    ),
)

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType({row.name: row for row in _ROWS})

EXCLUDED_SETS: MappingProxyType[str, str] = MappingProxyType(
    {"medquad": "kept aside: rerankers are measured on it, and nothing is chosen by it"}
)
"""Training sets that are never read, and why."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        SettingsError: if there is none.
    """
    if name not in RECIPES:
        raise SettingsError(f"no recipe is called {name!r}; known recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
