"""Write the table of odd input in ``docs/inputs.md`` from the tests of the readers, and take the page's examples.

``python -m ensemble_assets_tests.tools.inputs_page`` writes the table into the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.collection.readers.read_report import REASONS
from ensemble_assets_tests.collection.readers.test_counted_input import COUNTED
from ensemble_assets_tests.collection.readers.test_refused_input import ERRORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inputs.md"
MARK = "<!-- table -->\n"
_EXAMPLE = re.compile(r"^```example (\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A file of the page, and the field options that it is read with."""

    path: str
    options: dict[str, str]
    content: str


def examples() -> list[Example]:
    """Every example of the page."""
    found = _EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
    return [Example(path, dict(pair.split("=") for pair in given.split()), content) for path, given, content in found]


def table() -> str:
    """The table of what is done with odd input."""
    rows = ["| input | what is done |", "|---|---|"]
    for name, _, counts, _ in COUNTED:
        done = "; ".join(f"{REASONS[code].effect}: {REASONS[code].words}" for code in counts)
        rows.append(f"| {name} | {done or 'read'} |")
    rows += [f"| {name} | refused, with the place: {'; '.join(parts)} |" for name, _, parts in ERRORS]
    return "\n".join(row.replace("\n", " ") for row in rows) + "\n"


def with_table(page: str) -> str:
    """The page with the table of now."""
    return page.partition(MARK)[0] + MARK + table()


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
