"""``python -m ensemble_assets_tests.model_zoo``: run all layouts, or named ones, and print a table of verdicts."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ensemble_assets_tests.model_zoo.compare import Comparison
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.layouts import LAYOUTS
from ensemble_assets_tests.model_zoo.runs import rows_of, run_many


def chosen_layouts(patterns: Sequence[str]) -> list[Layout]:
    """Return the layouts whose key is named, or begins with what is named; all where nothing is."""
    return [each for each in LAYOUTS if not patterns or any(each.key.startswith(pattern) for pattern in patterns)]


def main() -> int:
    """Print the table; the exit code is 1 where a layout did not do what it should."""
    parser = argparse.ArgumentParser(prog="python -m ensemble_assets_tests.model_zoo", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a kind, or kind/name, or the start of one")
    parser.add_argument("--json", type=Path, help="also write the comparisons to this file, one JSON object a line")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "auto"))
    parser.add_argument("--together", action="store_true", help="models share runs; where one fails, each runs alone")
    parser.add_argument("--root", type=Path, help="keep models and caches in this folder; else they are removed")
    arguments = parser.parse_args()
    layouts = chosen_layouts(arguments.only)
    root = arguments.root or Path(tempfile.mkdtemp(prefix="zoo-"))
    comparisons: list[Comparison] = []
    if arguments.json:
        arguments.json.write_text("")
    rows = rows_of(layouts) if arguments.together else [[layout] for layout in layouts]
    for comparison in run_many(rows, root, arguments.precision):
        comparisons.append(comparison)
        mark = " " if comparison.as_expected else "!"
        line = f"{mark} {comparison.key:38} {comparison.verdict:10} {comparison.seconds:5.1f} s  {comparison.detail}"
        print(line, flush=True)
        if arguments.json:
            with arguments.json.open("a") as stream:
                stream.write(json.dumps(asdict(comparison)) + "\n")
    if not arguments.root:
        shutil.rmtree(root, ignore_errors=True)
    print(_totals(comparisons))
    return 0 if all(each.as_expected for each in comparisons) else 1


def _totals(comparisons: Sequence[Comparison]) -> str:
    verdicts = Counter(each.verdict for each in comparisons)
    named = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    right = sum(each.as_expected for each in comparisons)
    return f"{len(comparisons)} layouts: {named}; {right} as expected"


if __name__ == "__main__":
    raise SystemExit(main())
