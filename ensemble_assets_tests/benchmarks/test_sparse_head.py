"""The benchmark of the sparse head runs to its table, with states that transformers computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets_tests.benchmarks import sparse_head


def test_two_documents_give_a_table_and_the_weights_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scifact").mkdir()
    texts = ("Memory of stages is measured.", "A query finds its chunk.")
    lines = [json.dumps({"_id": str(at), "title": "Memory", "text": text}) + "\n" for at, text in enumerate(texts)]
    (tmp_path / "scifact" / "corpus.jsonl").write_text("".join(lines))
    command = ["sparse_head", "--eval-dir", str(tmp_path), "--documents", "2", "--max-tokens", "32", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--only", "torch fp32", "products", "tiles bf16"])
    sparse_head.main()
    table = capsys.readouterr().out
    rows = [line.split("|") for line in table.splitlines() if line.startswith(("| torch", "| products", "| tiles"))]
    assert [row[1].strip() for row in rows] == ["torch fp32", "products", "tiles bf16"]
    assert all(float(row[7]) < 1e-5 for row in rows)
