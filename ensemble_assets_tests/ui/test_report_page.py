"""The report in a real browser: on a phone and on paper nothing is cut off, and letters stay readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.report.page import page_of
from ensemble_assets.report.read_facts import read_facts
from ensemble_assets_tests.report.test_report import bundle, whole
from ensemble_assets_tests.ui.browser import chromium, page

__all__ = ["bundle", "whole"]

CUT_OFF = """() => [...document.querySelectorAll('.wide, .chart, body')]
    .filter(element => element.scrollWidth > element.clientWidth + 1).map(element => element.innerText)"""
SMALLEST_LETTER = """() => Math.min(...[...document.querySelectorAll('svg text')].map(text =>
    parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a))"""


@pytest.mark.ui
@pytest.mark.parametrize(("width", "media"), [(390, "screen"), (718, "print")])
def test_nothing_of_the_report_is_cut_off(whole: dict[str, Any], tmp_path: Path, width: int, media: str) -> None:
    pytest.importorskip("playwright", reason="Playwright is an optional extra: pip install 'ensemble-assets[ui]'")
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    file = tmp_path / "report.html"
    file.write_text(page_of(read_facts(**whole)), encoding="utf-8")
    with page(width, 844) as tab:
        tab.emulate_media(media=media)
        tab.goto(file.as_uri())
        assert tab.evaluate(CUT_OFF) == []
        assert tab.evaluate(SMALLEST_LETTER) >= 9
