"""``python -m ensemble_assets.training.quality_page``: prints ``docs/quality.md`` from ``docs/quality.json``.

The figures file is what was measured (``training.evaluate``) and what others published; this module adds words and
tables and no figure of its own. A test holds the page to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "quality.json"

_HEAD = """\
# Quality

Made by `python -m ensemble_assets.training.quality_page > docs/quality.md` from `docs/quality.json`; not by hand.
All figures are nDCG@10 of the embedded profile unless a table says otherwise. Nothing of SciFact and TREC DL 2019 was
trained on here, and settings were chosen on the training sets; both encoders have seen MS MARCO, from which the
passages of TREC DL 2019 are.
"""


def page(figures: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    sections = (
        _HEAD,
        _scifact(figures["scifact"], figures["weight"]),
        _dl19(figures["trec-dl19"], figures["weight"]),
        _aside(figures["aside"], figures["weight"]),
        _choices(figures["choices"]),
        _share(figures["share"]),
        _students(figures["students"]),
        _late(figures["late_interaction"]),
        _tried(figures["tried"]),
        _published(figures["published"]),
    )
    return "\n".join(sections)


def _scifact(measured: Mapping[str, Any], weight: float) -> str:
    runs = measured["nDCG@10"]
    rows = [(name, f"{value:.4f}") for name, value in runs.items()]
    rows.append((f"reranked, w = {weight:g}", f"{measured['reranked'][f'{weight:g}']:.4f}"))
    return (
        f"## SciFact test, {measured['queries']} queries, zero-shot\n\n"
        "`fused` is the default: z-scores of dense, sparse and BM25, weights 0.4, 0.4, 0.2. `rrf`, `minmax`, `dbsf`\n"
        f"and `zscore` fuse dense and sparse alone, in equal parts. The first {measured['depth']} are reranked.\n\n"
        + table(("list", "nDCG@10"), rows)
        + f"\nReranked minus fused: {interval(measured['difference'])}.\n\n"
        + _weights(measured["reranked"])
        + _as_run(measured["as_run"])
    )


def _as_run(runs: Mapping[str, Any]) -> str:
    """Means of whole runs, with the text cut that they make."""
    names = list(next(iter(runs["rows"].values())))
    rows = [(settings, *(f"{means[name]:.4f}" for name in names)) for settings, means in runs["rows"].items()]
    return "\n" + "".join(f"{sentence}\n" for sentence in runs["words"]) + "\n" + table(("settings", *names), rows)


def _dl19(measured: Mapping[str, Any], weight: float) -> str:
    whole = measured["pipeline"]
    rows = [(name, f"{value:.4f}") for name, value in measured["nDCG@10"].items()]
    rows += [
        ("CrossEncoder alone", f"{measured['reranked']['1']:.4f}"),
        ("pipeline without the CrossEncoder", f"{whole['nDCG@10']['fused']:.4f}"),
        (f"pipeline, w = {weight:g}", f"{whole['reranked'][f'{weight:g}']:.4f}"),
    ]
    return (
        f"## TREC DL 2019, BM25's first 100 of {measured['queries']} queries\n\n"
        "`candidates/bm25.tsv` reranked, scored with the official qrels. `dense` and `sparse` order the hundred by\n"
        "that encoder's score, `teacher` by both; `CrossEncoder alone` is the shipped model and nothing else.\n"
        "`pipeline` is what the stages do with those candidates: dense, sparse and BM25 fused, then the first 20\n"
        "mixed with the CrossEncoder.\n\n"
        + table(("order", "nDCG@10"), rows)
        + f"\nPipeline with minus without the CrossEncoder: {interval(whole['difference'])}.\n\n"
        + _weights(whole["reranked"])
    )


def _aside(sets: Mapping[str, Any], weight: float) -> str:
    """Collections by which nothing was chosen."""
    rows = [
        (
            name,
            *(str(measured[count]) for count in ("passages", "queries")),
            *(f"{measured['nDCG@10'][run]:.4f}" for run in ("dense", "sparse", "lexical", "fused")),
            f"{measured['reranked'][f'{weight:g}']:.4f}",
            interval(measured["difference"]),
        )
        for name, measured in sets.items()
    ]
    head = ("set", "passages", "queries", "dense", "sparse", "lexical", "fused", f"w = {weight:g}", "reranked - fused")
    return (
        "## Kept aside\n\n"
        "Nothing was trained on these sets or chosen by them. A sample of passages and questions, fused and reranked\n"
        "as above (`training.evaluate --aside`).\n\n" + table(head, rows)
    )


def _choices(choices: Mapping[str, Any]) -> str:
    sets = list(choices["sets"])
    names = list(choices["sets"][sets[0]]["nDCG@10"])
    rows = [
        (name, *(f"{choices['sets'][one]['nDCG@10'][name]:.3f}" for one in sets), f"{choices['mean'][name]:.4f}")
        for name in names
    ]
    return (
        "## What was chosen, and by what\n\n"
        + "".join(f"{sentence}\n" for sentence in choices["words"])
        + "\n"
        + table(("list", *sets, "mean"), rows)
    )


def _share(share: Mapping[str, Any]) -> str:
    """nDCG@10 by the CrossEncoder's share, where that share was chosen."""
    rows = [(name, *(f"{value:.4f}" for value in values)) for name, values in share["rows"].items()]
    return "".join(f"{sentence}\n" for sentence in share["words"]) + "\n" + table(("w", *share["weights"]), rows)


def _students(students: Mapping[str, Any]) -> str:
    """Rerankers of several sizes: training, quality alone and mixed, and speed."""
    rows = [
        (
            name,
            str(one["steps"]),
            str(one["minutes"]),
            *(f"{one[measured]:.4f}" for measured in ("scifact_alone", "scifact_mixed", "dl19_alone", "dl19_mixed")),
            f"{one['pairs_per_second']:,}",
        )
        for name, one in students["rows"].items()
    ]
    head = (
        "student", "steps", "minutes", "SciFact alone", "SciFact, in its share", "DL 2019 alone",
        "DL 2019 pipeline, in its share", "pairs a second",
    )  # fmt: skip
    words = "".join(f"{sentence}\n" for sentence in students["words"])
    return "## Students of three sizes\n\n" + words + "\n" + table(head, rows)


def _late(late: Mapping[str, Any]) -> str:
    """The reranker that is an option, beside the default one."""
    rows = [
        (
            name,
            str(one["queries"]),
            *(f"{one[measured]:.4f}" for measured in ("fused", "tiny", "late")),
            interval(one["difference"]) if one["difference"] else "",
            *(f"{one[measured]:.4f}" for measured in ("tiny_alone", "late_alone")),
        )
        for name, one in late["rows"].items()
    ]
    head = ("set", "queries", "fused", "default", "option", "option - fused", "default alone", "option alone")
    shares = [(name, *(f"{value:.4f}" for value in values)) for name, values in late["by_share"].items()]
    words = "".join(f"{sentence}\n" for sentence in late["words"])
    by_share = "\nThe option by its share w:\n\n" + table(("w", *late["shares"]), shares)
    return "## The larger reranker\n\n" + words + "\n" + table(head, rows) + by_share


def _tried(tried: Sequence[str]) -> str:
    return "## What falls short, and what was tried\n\n" + "".join(f"- {sentence}\n" for sentence in tried)


def _published(published: Mapping[str, Any]) -> str:
    sets = published["sets"]
    rows = [(name, *(_shown(one) for one in values)) for name, values in published["rows"].items()]
    return (
        "## Published figures\n\n"
        + "".join(f"{sentence}\n" for sentence in published["words"])
        + "\n"
        + table(("system", *sets, "source"), rows)
    )


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3f}"


def _weights(by_weight: Mapping[str, float]) -> str:
    """The reranked mean at every share of the CrossEncoder."""
    return table(
        ("w", *by_weight),
        [("nDCG@10", *(f"{value:.3f}" for value in by_weight.values()))],
    )


def interval(difference: Mapping[str, Any]) -> str:
    """A mean difference with its 95 % interval in words."""
    low, high = difference["interval95"]
    real = "real" if low > 0 or high < 0 else "not more than chance"
    return f"{difference['mean']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({real})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(FIGURES.read_text(encoding="utf-8"))))
