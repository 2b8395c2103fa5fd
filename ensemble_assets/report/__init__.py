"""The run report: one self-contained HTML page made from a bundle. Numbers, fixed words and model names; no text."""

from ensemble_assets.report.page import build_report, page_of

__all__ = ["build_report", "page_of"]
