"""The wheel holds what a user needs: the package with weights, sample collection and templates, without training."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def in_package(*patterns: str) -> set[str]:
    """Files of the package in the repository, as the wheel names them."""
    package = ROOT / "ensemble_assets"
    paths = [path for pattern in patterns for path in package.glob(pattern) if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_training_tests_and_benchmarks_are_not_in_the_wheel(names: set[str]) -> None:
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"ensemble_assets"}
    assert not [name for name in names if "training" in name.split("/")]
    assert not [name for name in names if Path(name).name.startswith("test_") or "benchmarks" in name.split("/")]


def test_every_other_module_and_every_data_file_is_in_the_wheel(names: set[str]) -> None:
    modules = {name for name in in_package("**/*.py") if not name.startswith("ensemble_assets/training/")}
    data = in_package("weights/**/*", "sample/**/*", "**/*.j2", "**/*.html", "**/*.css")
    assert {"ensemble_assets/weights/ensemble-reranker-tiny/model.safetensors"} <= data
    assert any(name.startswith("ensemble_assets/sample/") and name.endswith(".json") for name in data)
    missing = {name for name in (modules | data) - names if "__pycache__" not in name}
    assert not missing


def test_the_command_is_declared(names: set[str]) -> None:
    assert [name for name in names if name.endswith("entry_points.txt")]
