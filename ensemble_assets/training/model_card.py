"""``python -m ensemble_assets.training.model_card DIR``: writes ``README.md`` of a reranker folder.

Every figure comes from ``figures.json`` (written by ``evaluate``) and every fact about the training from
``training.json`` (written by ``reranker``); none is typed here. Licences of data and base models are a table below.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ensemble_assets.common.errors import ArtefactError, EnsembleError

CARD, TRAINING, FIGURES = "README.md", "training.json", "figures.json"


@dataclass(frozen=True)
class Source:
    """Where something that went into the weights comes from.

    Attributes:
        licence: SPDX identifier.
        stated: whether the source repository states it; otherwise it is recalled and has not been read there.
        origin: what it is made of.
    """

    licence: str
    stated: bool
    origin: str


SETS: Mapping[str, Source] = MappingProxyType(
    {
        "boolq-dev": Source("CC-BY-SA-3.0", False, "BoolQ development questions with their Wikipedia passages"),
        "covidqa": Source("Apache-2.0", True, "COVID-QA questions on passages of biomedical articles"),
        "nq-sure": Source("CC-BY-SA-3.0", False, "Natural Questions with Wikipedia passages"),
        "squadshifts-amazon": Source("CC-BY-4.0", False, "SQuADShifts questions on product reviews"),
        "squadshifts-newwiki": Source("CC-BY-4.0", False, "SQuADShifts questions on Wikipedia articles"),
        "squadshifts-reddit": Source("CC-BY-4.0", False, "SQuADShifts questions on forum posts"),
    }
)
"""Training sets that may be named in a card; a set without a row here stops the card."""

_HEAD = """---
license: cc-by-sa-4.0
language: en
library_name: transformers
pipeline_tag: text-ranking
tags: [cross-encoder, reranker]
---

# {name}

A small CrossEncoder that reranks the first candidates of hybrid (dense and learned sparse) retrieval. English.
{layers} layers, {hidden_size} wide, `BertForSequenceClassification` with one label; weights stored as float16, meant to
be computed in float32 or bfloat16. A pair is `[CLS] query [SEP] passage [SEP]`, at most {max_tokens} tokens; the output
is a logit without activation, higher is more relevant.

It is meant to be added to the first stage's scores, each scaled to [0, 1] per query (the first stage's over all of its
candidates, the logits over the pairs that were scored):
`final = (1 - w) * minmax(first stage) + w * minmax(logit)` with w = {weight:g}. Which w is best
differs by collection, see below.

```python
from sentence_transformers import CrossEncoder

scores = CrossEncoder("path/to/{name}", max_length={max_tokens}).predict([("query", "passage")])
```
"""

_LIMITS = """## Limits

Trained on short English questions and statements over passages of about 50 to 250 words; not on code, tables or other
languages. Scores of different queries are not comparable: it was trained to order the passages of one query.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the card; returns 0, or 1 where a file is missing or a set has no licence row."""
    parser = argparse.ArgumentParser(prog="python -m ensemble_assets.training.model_card", description=main.__doc__)
    parser.add_argument("model", type=Path, help="reranker folder with training.json and figures.json")
    folder: Path = parser.parse_args(arguments).model
    try:
        card = model_card(folder.name, _read(folder / TRAINING), _read(folder / FIGURES))
    except EnsembleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    (folder / CARD).write_text(card, encoding="utf-8")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        command = {TRAINING: "training.reranker", FIGURES: "training.evaluate"}[path.name]
        raise ArtefactError(f"{path.name} is missing or no JSON object. Make it with {command}") from error


def model_card(name: str, training: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The card's text from what was recorded at training and what was measured.

    Raises:
        ArtefactError: if a training set has no row in ``SETS``.
    """
    unknown = sorted(set(training["sets"]) - set(SETS))
    if unknown:
        raise ArtefactError(f"no licence is known for the training set {unknown[0]}. Add a row to model_card.SETS")
    recipe = training["recipe"]
    weight = _weight(figures)
    head = _HEAD.format(name=name, max_tokens=figures["max_tokens"], weight=weight, **_shape(recipe))
    parts = [head, _made_from(training), _how(training), _measured(figures), _LIMITS]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _shape(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: recipe[key] for key in ("layers", "hidden_size")}


def _weight(figures: Mapping[str, Any]) -> float:
    return float(figures["weight"])


def _made_from(training: Mapping[str, Any]) -> str:
    lines = [
        "## Made from",
        "",
        f"Start: the encoder of `{training['recipe']['body']}`. Teachers and start:",
        "",
        *(f"- `{model}`, {licence}" for model, licence in _TEACHERS.items()),
        "",
        "| set | what | licence | passages | questions | sentences |",
        "|---|---|---|---|---|---|",
    ]
    for name, counts in sorted(training["sets"].items()):
        source = SETS[name]
        licence = f"{source.licence} ({'stated' if source.stated else 'recalled'})"
        numbers = " | ".join(str(counts[key]) for key in ("passages", "queries", "sentences"))
        lines.append(f"| {name} | {source.origin} | {licence} | {numbers} |")
    return "\n".join(
        [
            *lines,
            "",
            'Licences: "stated" is read in the source repository, "recalled" is from memory and was not checked there.',
            "The weights are shared under CC BY-SA 4.0, the licence that share-alike of the above leads to.",
            *(f"Not used: {name}: {why}." for name, why in training["excluded_sets"].items()),
        ]
    )


_TEACHERS: Mapping[str, str] = MappingProxyType(
    {
        "sentence-transformers/all-MiniLM-L6-v2": "Apache-2.0, dense teacher",
        "rasyosef/splade-tiny": (
            "sparse teacher and start of the weights; Apache-2.0 in the package that carries it, MIT on its model card"
        ),
    }
)


def _how(training: Mapping[str, Any]) -> str:
    recipe = training["recipe"]
    libraries = ", ".join(f"{name} {version}" for name, version in training["libraries"].items())
    share = recipe["dense_weight"]
    return f"""## How

Listwise distillation: for each query {recipe["passages_per_query"]} passages (the labelled one, or the teacher's first;
{recipe["hard_passages"]} of the teacher's first {recipe["hard_depth"]}, {recipe["mid_passages"]} of its ranks to
{recipe["pool_depth"]}, the rest random), KL divergence to the teacher's softmax at temperature {recipe["temperature"]}.
The teacher is {share:g} x dense cosine + {1 - share:g} x SPLADE dot product, each scaled to [0, 1] per query.
Queries are the sets' questions and, without labels, up to {recipe["sentence_queries"]} sentences of every passage. From
{recipe["labels_from"]:.0%} of the steps on, labels join: listwise cross-entropy of the student (weight
{recipe["label_weight"]}) and of student plus teacher (weight {recipe["residual_weight"]}), without passages that the
teacher scores more than {recipe["false_negative_margin"]} above the labelled one. Queries of
{recipe["held_out_share"]:.0%} of the passages are held out.

{recipe["steps"]} steps of {recipe["queries_per_step"]} queries, AdamW at {recipe["learning_rate"]}, pairs of at most
{recipe["max_tokens"]} tokens, seed {training["seed"]}, {training["threads"]} threads. {libraries}, Python
{training["python"]}. Again with:

```
python -m ensemble_assets.training.reranker --data DIR --output DIR --recipe {recipe["name"]} \\
    --steps {recipe["steps"]} --seed {training["seed"]} --threads {training["threads"]}
```

All settings, counts and the SHA-256 of every data file are in `training.json`."""


def _measured(figures: Mapping[str, Any]) -> str:
    lines = [
        "## Measured",
        "",
        f"{figures['measure']}, from `figures.json`. Nothing of SciFact and TREC DL 2019 was trained on here, and",
        "nothing was chosen by them; both teachers have seen MS MARCO, from which the passages of TREC DL 2019 are.",
        "",
    ]
    named = {"scifact": "SciFact test", "trec-dl19": "TREC DL 2019"}
    for key, title in named.items():
        if key in figures:
            lines += [*_table(title, figures[key]), ""]
    for name, one in figures.get("aside", {}).items():
        lines += [*_table(f"{name}, kept aside", one), ""]
    for name, one in figures.get("development", {}).get("sets", {}).items():
        lines += [*_table(f"{name}, held-out questions", one), ""]
    return "\n".join(lines)


def _table(title: str, one: Mapping[str, Any]) -> Iterator[str]:
    difference = one["difference"]
    low, high = difference["interval95"]
    columns = {**one["nDCG@10"], **{f"w={weight}": value for weight, value in one["reranked"].items()}}
    yield f"**{title}**: {one['queries']} queries, first {one['depth']} reranked; at w = {difference['weight']:g}"
    yield f"{difference['mean']:+.4f} over the first stage, 95 % interval {low:+.4f} to {high:+.4f}."
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield f"| {' | '.join(f'{value:.3f}' for value in columns.values())} |"


if __name__ == "__main__":
    sys.exit(main())
