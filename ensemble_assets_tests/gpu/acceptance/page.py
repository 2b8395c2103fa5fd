"""The table of ``docs/gpu.md`` from the JSON of an acceptance run: ``python -m …acceptance.page FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_SHOWN = {
    "facts": ("after_loading_bytes", "growth_after_the_first_product"),
    "never_fits": ("seconds_after_loading", "out_of_memory_events"),
    "ceiling": (),
    "intruder": ("mean_rows_before_during_between_after",),
    "full_device": ("waited", "out_of_memory_events"),
    "leases": ("leases", "seconds_until_granted_after_kill"),
    "recovery": ("worker_starts", "failed_rows"),
    "agreement": (),
    "kernels": ("refused",),
    "throughput": ("gain_of_the_second_t4",),
    "end": ("bytes_left",),
}
"""Figures of each section that the page shows, as far as the run has them."""


def page(report: dict[str, Any]) -> str:
    """One row per section, then one per run of the simulated benchmark."""
    lines = [f"Run on a {report['device']} device, {report['seconds']:.0f} s.", ""]
    lines += ["| section | passed | figures |", "| --- | --- | --- |"]
    for name, section in report["sections"].items():
        figures = [f"{word.replace('_', ' ')} {_short(section[word])}" for word in _SHOWN[name] if word in section]
        figures += [_of_models(section, *words) for words in _BY_MODEL.get(name, ()) if _values(section, words[0])]
        lines.append(f"| {name} | {'yes' if section['passed'] else 'NO'} | {'; '.join(figures)} |")
    runs = {name: run for name, run in report["sections"]["throughput"].items() if isinstance(run, dict)}
    words = list(next(iter(runs.values())))
    lines += ["", f"| throughput | {' | '.join(word.replace('_', ' ') for word in words)} |"]
    lines += ["| --- " * (1 + len(words)) + "|"]
    lines += [f"| {name} | {' | '.join(str(run[word]) for word in words)} |" for name, run in runs.items()]
    return "\n".join(lines) + "\n"


_BY_MODEL = {
    "ceiling": (("most_used", max), ("share_of_soft", min), ("redone", max)),
    "agreement": (("cosine", min), ("shared_terms", min)),
    "kernels": (("masks", max), ("grouped", max)),
}
"""Figures that every model has, and which of them is shown."""


def _of_models(section: dict[str, Any], word: str, choose: Any) -> str:
    return f"{choose.__name__} {word.replace('_', ' ')} {_short(choose(_values(section, word)))}"


def _values(section: Any, word: str) -> list[float]:
    """All numbers of a name, however deep."""
    if not isinstance(section, dict):
        return []
    own = [section[word]] if isinstance(section.get(word), int | float) else []
    return own + [value for part in section.values() for value in _values(part, word)]


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value)
    return f"{value / 1e9:.2f} GB" if value > 10_000_000 else f"{value:.4g}"


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())), end="")
