"""``make ui`` says where it is, and nothing of Dagster's own affairs."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from ensemble_assets_tests.orchestration.pipeline import write_collection
from ensemble_assets_tests.ui.server import ROOT, dagster_ui

pytestmark = pytest.mark.ui


def test_dagster_prints_nothing_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    recipe = subprocess.run(["make", "-n", "ui"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    serving = next(line for line in recipe.splitlines() if "dagster dev" in line)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore" if "PYTHONWARNINGS=ignore" in serving else "default")
    options = shlex.split(serving.partition("workspace.yaml")[2])
    with dagster_ui(tmp_path / "home", tmp_path / "corpora", tmp_path / "output", options=options):
        time.sleep(5)  # the daemon begins after the server
        assert (tmp_path / "home" / "ui.log").read_text() == ""
