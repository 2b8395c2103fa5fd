"""The page about the sparse head names files, functions and numbers that exist."""

from __future__ import annotations

import re
from pathlib import Path

from ensemble_assets.compute.splade_head import head

ROOT = Path(head.__file__).parents[3]
PAGE = (ROOT / "docs" / "sparse-head.md").read_text(encoding="utf-8")
FOLDER = Path(head.__file__).parent


def test_every_module_of_the_folder_stands_in_the_table_and_every_file_named_exists() -> None:
    table = set(re.findall(r"^\| `(\S+\.py)` \|", PAGE, re.MULTILINE))
    assert table == {str(path.relative_to(ROOT)) for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    tests = Path(__file__).parent
    for name in re.findall(r"`(\w+\.py)`", PAGE):
        assert (FOLDER / name).is_file() or (tests / name).is_file() or (FOLDER.parent / "backends" / name).is_file()
    for path in re.findall(r"`(docs/\S+?)`", PAGE):
        assert list(ROOT.glob(f"{path}*")), path


def test_the_names_of_functions_and_classes_are_those_of_the_code() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    defined = set(re.findall(r"(?:def|class) (\w+)", sources))
    names = {name for name in re.findall(r"`(\w+)`", PAGE) if "_" in name or name in {"SparseHead", "Screen", "encode"}}
    assert len(names) > 10
    assert names - {"top_k"} <= defined


def test_the_thresholds_are_those_of_the_code() -> None:
    assert f"fewer than {head._WORTH_MEASURING:,} tokens" in PAGE
    assert f"less than {head._WORTH_FITTING:.0f} s of products" in PAGE
    assert f"at least {head._WORTH_COMPILING:.0f} s of products" in PAGE
