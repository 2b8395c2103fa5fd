"""docs/architecture.md names files that exist, every package, and the layers that import-linter holds."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_0-9/]+/[a-z_0-9]*(?:\.py|\.md)?)`", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_file_exists(name: str) -> None:
    places = (ROOT / "ensemble_assets" / name, ROOT / name, ROOT / "ensemble_assets_tests" / name)
    assert any(place.exists() for place in places), name


DESCRIPTIONS_FROM = 56
"""Column of the drawing where the words about a layer begin."""


MOST_MODULES = 12


def test_the_page_names_files() -> None:
    assert len(NAMED) > 30


def test_the_drawing_has_the_layers_that_are_held() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    drawing = "\n".join(line[:DESCRIPTIONS_FROM] for line in PAGE.split("```")[1].splitlines())
    places = []
    for layer in layers:
        names = [name.strip().removeprefix("ensemble_assets.") for name in layer.split("|")]
        found = [re.search(rf"\b{name}\b", drawing) for name in names]
        assert all(found), names
        places.append(min(match.start() for match in found if match))
    assert places == sorted(places)


def test_no_folder_has_more_modules_than_an_eye_takes_in() -> None:
    folders = {path.parent for path in (ROOT / "ensemble_assets").rglob("*.py")}
    counts = {folder: sum(path.stem != "__init__" for path in folder.glob("*.py")) for folder in folders}
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_every_package_is_in_the_drawing() -> None:
    packages = {path.parent.name for path in (ROOT / "ensemble_assets").glob("*/__init__.py")}
    drawing = PAGE.split("```")[1]
    assert {name for name in packages - {"training", "sample"} if name not in drawing} == set()


SAY_NOTHING = {"found", "kept", "known", "told", "one"}
"""Names that say how a value was come by, and not what it is."""


def test_no_variable_has_a_name_that_says_nothing() -> None:
    package, named = ROOT / "ensemble_assets", set()
    for path in sorted(set(package.rglob("*.py")) - set((package / "training").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            if name in SAY_NOTHING:
                named.add(f"{path.relative_to(package)}: {name}")
    assert named == set()
