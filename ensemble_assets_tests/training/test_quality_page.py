"""``docs/quality.md`` is what the command writes from ``docs/quality.json``; the tables say what the figures say."""

from __future__ import annotations

import json
from pathlib import Path

from ensemble_assets.training.quality_page import FIGURES, interval, page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_what_the_command_writes_from_the_figures_file() -> None:
    assert (DOCS / "quality.md").read_text(encoding="utf-8") == page(json.loads(FIGURES.read_text(encoding="utf-8")))


def test_a_changed_figure_changes_the_page() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    figures["scifact"]["nDCG@10"]["fused"] = 0.1234
    assert "| fused | 0.1234 |" in page(figures)


def test_a_difference_is_called_real_only_if_its_interval_excludes_zero() -> None:
    assert interval({"mean": 0.02, "interval95": [0.01, 0.03]}).endswith("(real)")
    assert interval({"mean": 0.02, "interval95": [-0.01, 0.03]}).endswith("(not more than chance)")
    assert interval({"mean": -0.02, "interval95": [-0.03, -0.01]}).endswith("(real)")


def test_the_figures_are_of_the_default_settings() -> None:
    from ensemble_assets.models.registry import MODELS, PROFILES
    from ensemble_assets.settings.options import Rerank

    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert figures["weight"] == MODELS[PROFILES["embedded"].rerank].share
    assert figures["scifact"]["depth"] == Rerank().depth
