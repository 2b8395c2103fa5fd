"""The acceptance run on a simulated card, without the packages that a borrowed machine lacks; and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets_tests.gpu.acceptance.page import page
from ensemble_assets_tests.gpu.acceptance.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "docs" / "gpu-acceptance-simulated.json"


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run it where polars, dagster and platformdirs cannot be imported."""
    absent = folder / "absent"
    absent.mkdir()
    for name in ("polars", "dagster", "platformdirs"):
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n")
    command = [sys.executable, "-m", "ensemble_assets_tests.gpu.acceptance", "--device", "simulated"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(absent), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [*command, "--output", str(folder / "report.json"), *arguments], env=environment, check=False
    )
    return finished.returncode, json.loads((folder / "report.json").read_text())


@pytest.mark.timeout(300)
def test_every_section_passes_on_a_simulated_card(tmp_path: Path) -> None:
    status, report = run(tmp_path)
    assert {name: section["passed"] for name, section in report["sections"].items()} == dict.fromkeys(SECTIONS, True)
    assert (status, report["passed"]) == (0, True)


def test_some_sections_can_be_asked_for(tmp_path: Path) -> None:
    status, report = run(tmp_path, "--sections", "facts,end")
    assert (status, list(report["sections"])) == (0, ["facts", "end"])


def test_the_page_is_made_from_the_stored_run() -> None:
    report = json.loads(STORED.read_text())
    assert list(report["sections"]) == list(SECTIONS)
    assert report["passed"]
    shown = (ROOT / "docs" / "gpu.md").read_text().split("<!-- acceptance -->\n")[1].split("<!-- end -->")[0]
    assert shown == page(report)


def test_a_card_is_never_kept_longer_than_eight_minutes() -> None:
    assert all(section.seconds <= 150 for section in SECTIONS.values())
    assert "_MOST_SECONDS = 480.0" in (Path(__file__).parent / "acceptance" / "__main__.py").read_text()
