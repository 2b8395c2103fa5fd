"""The configuration page is what the options say, and the flags that it promises exist."""

from __future__ import annotations

import re
from pathlib import Path

from ensemble_assets.cli.run import run
from ensemble_assets_tests.tools.configuration_page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_what_the_options_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m ensemble_assets_tests.tools.configuration_page > docs/configuration.md"
    )


def test_the_flags_on_the_page_exist() -> None:
    flags = {name for parameter in run.params for name in (*parameter.opts, *parameter.secondary_opts)}
    promised = set(re.findall(r"--[a-z-]+", PAGE.read_text(encoding="utf-8").partition("\n## ")[0])) - {"--set"}
    assert promised <= flags
