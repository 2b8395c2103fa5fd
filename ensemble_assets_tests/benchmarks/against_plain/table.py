"""The table of ``against_plain``: ratios of medians, agreement and memory, as Markdown between markers of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_assets.common.machine import instruction_sets, library_versions, this_host
from ensemble_assets.common.stage_times import StageSeconds

_ROWS = (
    ("dense", "plain-dense", "ours-dense"),
    ("sparse", "plain-sparse", "ours-sparse"),
    ("sparse, plain at our length", "plain-sparse-same-length", "ours-sparse"),
    ("rerank", "plain-rerank", "ours-rerank"),
    ("rerank, plain at our length", "plain-rerank-same-length", "ours-rerank"),
)


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The table of what was measured; rows whose pieces are missing are left out."""
    lines = [_heading(found), "", "| stage | plain, s | ours, s | times faster | plain, MB | ours, MB | agreement |"]
    lines.append("|---|---|---|---|---|---|---|")
    for title, plain, ours in _ROWS:
        if plain in found and ours in found:
            lines.append(_row(title, found[plain], found[ours]))
    stages = [found.get(f"{side}-{stage}") for side in ("plain", "ours") for stage in ("dense", "sparse", "rerank")]
    if all(stages):
        plain_total, ours_total = (sum(one["seconds"] for one in part if one) for part in (stages[:3], stages[3:]))
        lines.append(f"| all three | {plain_total:.2f} | {ours_total:.2f} | {plain_total / ours_total:.2f} | | | |")
    return "\n".join([*lines, *_whole_run(found)]) + "\n"


def kind_of_processor() -> str:
    """Name the kind of this processor by the units that its speed depends on: every kind has a table of its own."""
    flags = set(instruction_sets().replace("(", " ").split())
    units = (("matrix-units", "amx_bf16"), ("avx512-bf16", "avx512_bf16"), ("avx512", "avx512f"), ("avx2", "avx2"))
    return next((kind for kind, flag in units if flag in flags), "other")


def _heading(found: dict[str, dict[str, Any]]) -> str:
    host, libraries = this_host(), library_versions()
    items = next((found[name]["items"] for name in ("plain-dense",) if name in found), 0)
    pairs = found.get("plain-rerank", {}).get("items", 0)
    repeats = {one["repeats"] for one in found.values()}
    shown = [name for name in ("sentence-transformers", "torch", "openvino") if name in libraries]
    versions = ", ".join(f"{name} {libraries[name]}" for name in shown)
    return (
        f"{items:g} chunks, {pairs:g} pairs; medians of {min(repeats, default=0)} runs; {host.cores} cores of "
        f"{host.cpu}; {versions}."
    )


def _row(title: str, plain: dict[str, Any], ours: dict[str, Any]) -> str:
    ratio = plain["seconds"] / ours["seconds"]
    cells = (
        title,
        f"{plain['seconds']:.2f}",
        f"{ours['seconds']:.2f} ({ours['precision']})",
        f"{ratio:.2f}",
        f"{plain['peak_mb']:,.0f}",
        f"{ours['peak_mb']:,.0f}",
        _agreement(ours),
    )
    return "| " + " | ".join(cells) + " |"


def _agreement(ours: dict[str, Any]) -> str:
    parts = []
    if "largest_weight_difference" in ours:
        parts.append(f"largest weight difference {ours['largest_weight_difference']:.2g}")
    if "least_cosine" in ours:
        parts.append(f"least cosine {ours['least_cosine']:.7f}")
    if "largest_score_difference" in ours:
        parts.append(f"largest score difference {ours['largest_score_difference']:.2g}")
    return ", ".join(parts)


def _whole_run(found: dict[str, dict[str, Any]]) -> list[str]:
    """The default run as a user starts it, beside the plain script's dense part."""
    if "ours-run" not in found:
        return []
    run = found["ours-run"]
    seconds = StageSeconds.from_stages(run["stage_seconds"])
    said = ", ".join(f"{stage} {took:.2f} s" for stage, took in run["stage_seconds"].items())
    lines = ["", f"The default run (depth 20, budget off): {said}; the whole command {run['command_seconds']:.2f} s."]
    own = seconds.vs_own_dense()
    if "plain-dense" in found and own is not None:
        sla = seconds.vs_sla(found["plain-dense"]["seconds"])
        lines.append(f"`vs_sla` {sla:.2f}, `vs_own_dense` {own:.2f}; peak {run['peak_mb']:,.0f} MB.")
    return lines


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Put ``text`` where the page has ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    content = page.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{page.name}: expected one {begin} and one {end}")
    before, after = content.split(begin)[0], content.split(end)[1]
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
