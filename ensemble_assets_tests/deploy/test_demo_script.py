"""``docs/demo.sh`` runs to its end and shows what it says, on a small collection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_assets_tests.orchestration.pipeline import write_collection

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.models
def test_the_demo_script(tmp_path: Path) -> None:
    write_collection(tmp_path / "demo" / "corpora" / "pydoc")
    environment = {
        **os.environ,
        "ENSEMBLE": f"{sys.executable} -m ensemble_assets.cli",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OPTIONS": "--set models.rerank=ensemble-reranker-tiny",
        "QUESTION": "where is the violin number 3",
    }
    done = subprocess.run(
        ["sh", str(ROOT / "docs" / "demo.sh"), "demo"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, changed, asked, shown, new = done.stdout.split("\n== ")[1:6]
    rows = {
        part: [line.split() for line in text.splitlines()] for part, text in (("first", first), ("changed", changed))
    }
    dense = {part: next(row for row in lines if row[:1] == ["dense"]) for part, lines in rows.items()}
    assert dense["first"][2] == dense["changed"][2] == "23", "20 chunks and 3 queries"
    assert dense["changed"][4] == "22", "all but the changed chunk are taken over"
    assert "violin 3" in asked.splitlines()[1]
    assert "No query gained or lost by reranking (nDCG@10)" in shown, "each of the three questions has its chunk first"
    assert "Buying apples at the orchard" in new
