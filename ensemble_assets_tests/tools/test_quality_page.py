"""The tables of ``docs/quality.md``, which is written by hand, hold the figures of ``docs/quality.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ensemble_assets.models.registry import MODELS, PROFILES
from ensemble_assets.settings.options import Rerank

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "quality.md").read_text(encoding="utf-8")
FIGURES: dict[str, Any] = json.loads((DOCS / "quality.json").read_text(encoding="utf-8"))
RATE = f"{FIGURES['weight']:g}"


SHOWN = {"lexical": "BM25"}
"""Names in the figures that the page has otherwise."""


def row(*cells: object) -> str:
    return "| " + " | ".join(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def short(values: Iterable[float | str | None]) -> list[str]:
    return ["" if value is None else value if isinstance(value, str) else f"{value:.3f}" for value in values]


def interval(difference: dict[str, Any]) -> str:
    low, high = difference["interval95"]
    real = "real" if low > 0 or high < 0 else "not more than chance"
    return f"{difference['mean']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({real})"


def expected_rows(figures: dict[str, Any]) -> Iterator[str]:
    """Every row of every table, headings left out."""
    scifact, dl19, choices = figures["scifact"], figures["trec-dl19"], figures["choices"]
    pipeline = dl19["pipeline"]
    for run, mean in (*scifact["nDCG@10"].items(), *dl19["nDCG@10"].items()):
        yield row(SHOWN.get(run, run), mean)
    yield row(f"reranked, w = {RATE}", scifact["reranked"][RATE])
    yield row("CrossEncoder alone", dl19["reranked"]["1"])
    yield row("pipeline without the CrossEncoder", pipeline["nDCG@10"]["fused"])
    yield row(f"pipeline, w = {RATE}", pipeline["reranked"][RATE])
    for measured in (scifact, pipeline):
        yield row("nDCG@10", *short(measured["reranked"].values()))
    for name, means in scifact["as_run"]["rows"].items():
        yield row(name, *means.values())
    for name, aside in figures["aside"].items():
        means = [aside["nDCG@10"][run] for run in ("dense", "sparse", "lexical", "fused")]
        sizes = aside["passages"], aside["queries"]
        yield row(name, *sizes, *means, aside["reranked"][RATE], interval(aside["difference"]))
    for name, mean in choices["mean"].items():
        yield row(SHOWN.get(name, name), *short(each["nDCG@10"][name] for each in choices["sets"].values()), mean)
    for name, means in (*figures["share"]["rows"].items(), *figures["late_interaction"]["by_share"].items()):
        yield row(name, *means)
    for name, student in figures["students"]["rows"].items():
        quality = [student[key] for key in ("scifact_alone", "scifact_mixed", "dl19_alone", "dl19_mixed")]
        yield row(name, student["steps"], student["minutes"], *quality, f"{student['pairs_per_second']:,}")
    for name, late in figures["late_interaction"]["rows"].items():
        difference = interval(late["difference"]) if late["difference"] else ""
        means = [late[key] for key in ("fused", "tiny", "late")]
        yield row(name, late["queries"], *means, difference, late["tiny_alone"], late["late_alone"])
    yield from open_set_rows(figures["open_sets"]["rows"])
    for name, values in figures["published"]["rows"].items():
        yield row(name, *short(values))


def open_set_rows(rows: dict[str, Any]) -> Iterator[str]:
    """The rows of the sets on which late interaction was measured beside the CrossEncoder."""
    for name, asked in rows.items():
        passages, queries, read, fused, *differences = asked.values()
        bounds = [(each["mean"], *each["interval95"]) for each in differences]
        gains = [f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in bounds]
        yield row(name, passages, queries, read, fused, *gains)


def rows_of(page: str) -> list[str]:
    """Every row of every table, without the two lines of its head."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, flags=re.M)
    return [line for table in tables for line in table.splitlines()[2:]]


def test_the_rows_of_the_page_are_those_of_the_figures() -> None:
    assert sorted(rows_of(PAGE)) == sorted(expected_rows(FIGURES))


def test_a_changed_figure_is_noticed() -> None:
    figures = json.loads(json.dumps(FIGURES))
    figures["scifact"]["nDCG@10"]["fused"] = 0.1234
    assert "| fused | 0.1234 |" in set(expected_rows(figures)) - set(rows_of(PAGE))


def test_the_differences_are_those_of_the_figures_and_called_real_only_if_their_interval_excludes_zero() -> None:
    for measured in (FIGURES["scifact"], FIGURES["trec-dl19"]["pipeline"]):
        assert f": {interval(measured['difference'])}." in PAGE
    assert interval({"mean": 0.02, "interval95": [0.01, 0.03]}).endswith("(real)")
    assert interval({"mean": 0.02, "interval95": [-0.01, 0.03]}).endswith("(not more than chance)")
    assert interval({"mean": -0.02, "interval95": [-0.03, -0.01]}).endswith("(real)")


def test_the_columns_are_those_of_the_figures() -> None:
    heads = [table.splitlines()[0] for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, flags=re.M)]
    choices, late = FIGURES["choices"], FIGURES["late_interaction"]
    assert row("list", *choices["sets"], "mean") in heads
    assert row("w", *FIGURES["share"]["weights"]) in heads
    assert row("w", *late["shares"]) in heads
    assert row("w", *FIGURES["scifact"]["reranked"]) in heads
    assert row("system", *FIGURES["published"]["sets"], "source") in heads


def test_the_figures_are_of_the_default_settings() -> None:
    assert FIGURES["weight"] == MODELS[PROFILES["embedded"].rerank].share
    assert FIGURES["scifact"]["depth"] == Rerank().depth
