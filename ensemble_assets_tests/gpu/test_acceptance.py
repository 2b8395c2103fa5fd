"""The acceptance run on a simulated card, without the packages that a borrowed machine lacks; and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ensemble_assets_tests.gpu.acceptance.page import page
from ensemble_assets_tests.gpu.acceptance.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "docs" / "gpu-acceptance-simulated.json"


NEEDED = ("torch", "transformers", "numpy", "safetensors", "nvidia-ml-py")
"""Of a usual machine-learning image; nvidia-ml-py is the one small wheel."""

FORWARD = "sentence-transformers"
"""The models' forward itself, in the sections with real models."""

WITH_MODELS = {"agreement", "kernels"}

WITHOUT = """
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = map(Without, sys.meta_path)
"""
"""Libraries ask whether an optional package can be found: to them it must look absent, not broken."""


def required(*names: str) -> set[str]:
    """Distributions that are installed with these, without extras."""
    wanted, found = [*names], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        with suppress(metadata.PackageNotFoundError):
            if name not in found:
                needs = [Requirement(text) for text in metadata.requires(name) or ()]
                wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
                found.add(name)
    return found


def run(folder: Path, *arguments: str, names: tuple[str, ...] = (*NEEDED, FORWARD)) -> tuple[int, dict[str, Any]]:
    """Run it where only these distributions, and those that they require, can be imported; in child processes too."""
    allowed = required(*names)
    modules = metadata.packages_distributions()
    absent = {module for module, owners in modules.items() if not allowed & set(map(canonicalize_name, owners))}
    assert {"polars", "dagster", "platformdirs", "psutil"} <= absent
    (folder / "absent").mkdir()
    (folder / "absent" / "sitecustomize.py").write_text(WITHOUT.format(absent=absent - {"ensemble_assets"}))
    command = [sys.executable, "-m", "ensemble_assets_tests.gpu.acceptance", "--device", "simulated"]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "absent"), str(ROOT)]), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    finished = subprocess.run(
        [*command, "--output", str(folder / "report.json"), *arguments], env=environment, check=False
    )
    return finished.returncode, json.loads((folder / "report.json").read_text())


@pytest.mark.timeout(300)
def test_every_section_passes_on_a_simulated_card(tmp_path: Path) -> None:
    status, report = run(tmp_path)
    assert {name: section["passed"] for name, section in report["sections"].items()} == dict.fromkeys(SECTIONS, True)
    assert (status, report["passed"]) == (0, True)


@pytest.mark.timeout(300)
def test_the_sections_without_a_real_model_do_without_the_library_of_the_models(tmp_path: Path) -> None:
    asked = [name for name in SECTIONS if name not in WITH_MODELS]
    status, report = run(tmp_path, "--sections", ",".join(asked), names=NEEDED)
    assert (status, list(report["sections"])) == (0, asked)


def test_the_page_is_made_from_the_stored_run() -> None:
    report = json.loads(STORED.read_text())
    assert list(report["sections"]) == list(SECTIONS)
    assert report["passed"]
    shown = (ROOT / "docs" / "gpu.md").read_text().split("<!-- acceptance -->\n")[1].split("<!-- end -->")[0]
    assert shown == page(report)


def test_a_library_that_lacks_what_is_called_is_not_accepted() -> None:
    """sentence-transformers has ``preprocess`` since 5.4; before, all models failed but those with a fast path.

    torch has ``AcceleratorError`` since 2.8; before, looking for it raised another error for every one of a model.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    for library, lacks, has in ((FORWARD, "5.3.0", "5.4.0"), ("torch", "2.7.1", "2.8.0")):
        assert not needs[library].contains(lacks)
        assert needs[library].contains(has)
    assert issubclass(torch.AcceleratorError, RuntimeError)


def test_a_card_is_never_kept_longer_than_eight_minutes() -> None:
    assert all(section.seconds <= 150 for section in SECTIONS.values())
    assert "_MOST_SECONDS = 480.0" in (Path(__file__).parent / "acceptance" / "__main__.py").read_text()
