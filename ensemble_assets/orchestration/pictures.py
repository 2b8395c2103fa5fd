"""Small pictures and tables for asset metadata: inline SVG in Markdown, a few kB each. Numbers, never chunk text."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import dagster as dg
import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT, _BAR_AREA, _LEFT = 420, 130, 90, 8


def histogram(values: NDArray[np.floating | np.integer], title: str, unit: str, bins: int = 24) -> dg.MetadataValue:
    """A histogram with its range, readable on light and dark backgrounds."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return dg.MetadataValue.md(f"{title}: no values")
    counts, edges = np.histogram(finite, bins=bins)
    labels = [f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {count}" for i, count in enumerate(counts)]
    foot = f"{edges[0]:.4g} to {edges[-1]:.4g} {unit}, median {np.median(finite):.4g}, n = {len(finite)}"
    return _svg(title, foot, counts.tolist(), labels)


def bars(names: Sequence[str], values: Sequence[float], title: str, unit: str) -> dg.MetadataValue:
    """One bar per name."""
    labels = [f"{name}: {value:.4g} {unit}" for name, value in zip(names, values, strict=True)]
    return _svg(title, "; ".join(labels), list(values), labels)


def table(rows: Sequence[dict[str, str | int | float | bool | None]], limit: int = 20) -> dg.MetadataValue:
    """A table of at most ``limit`` rows; words where there are none."""
    if not rows:
        return dg.MetadataValue.md("nothing to report")
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows[:limit]])


def _svg(title: str, foot: str, heights: Sequence[float], labels: Sequence[str]) -> dg.MetadataValue:
    top = max(*heights, 1e-9)
    step = (_WIDTH - 2 * _LEFT) / len(heights)
    rects = "".join(
        f'<rect x="{_LEFT + i * step:.1f}" y="{20 + _BAR_AREA * (1 - h / top):.1f}" width="{step * 0.86:.1f}" '
        f'height="{_BAR_AREA * h / top:.1f}"><title>{label}</title></rect>'
        for i, (h, label) in enumerate(zip(heights, labels, strict=True))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{title}">'
        f'<g font-family="sans-serif" font-size="11" fill="#808080"><text x="{_LEFT}" y="13">{title}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}" font-size="10">{foot}</text></g>'
        f'<g fill="#5b8def">{rects}</g></svg>'
    )
    return picture(svg, f"{title}: {foot}")


def picture(svg: str, told: str) -> dg.MetadataValue:
    """An SVG drawing as Markdown; ``told`` is read out instead of it."""
    encoded = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(f"![{told}](data:image/svg+xml;base64,{encoded})")
