"""What README and pages promise is there: commands with their options, figures in the pages that have their source."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from ensemble_assets.cli.main import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "demo.sh"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_CALL = re.compile(r"ensemble-assets ((?:[a-z-]+)(?: [^`\n#|;]*)?)")


def calls() -> list[tuple[str, str]]:
    """Every call of the command line in the pages, as page and words after the program's name."""
    found = []
    for page in PAGES:
        for code in re.findall(r"```(?:sh|bash|)\n(.*?)```|`([^`\n]+)`", page.read_text(encoding="utf-8"), re.DOTALL):
            found += [(page.name, call.strip()) for call in _CALL.findall(code[0] or code[1])]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "call"), calls())
def test_a_command_on_a_page_exists_with_its_options(page: str, call: str) -> None:
    words = shlex.split(call.replace("…", " ").replace("[", " ").replace("]", " "))
    command: click.Command = commands
    while isinstance(command, click.Group):
        assert words[0] in command.commands, f"{page}: {call}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known | {"--help"}, f"{page}: {call}"


def test_every_command_is_shown_somewhere() -> None:
    shown = {call.split()[0] for _, call in calls()}
    assert shown == set(commands.commands)


def test_the_table_of_reasons_has_the_figures_of_the_page_that_it_names() -> None:
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    plain, ours = re.search(r"dense, sparse and reranking \| ([\d.]+) s \| ([\d.]+) s", README).groups()  # type: ignore[union-attr]
    rows = re.findall(r"\| all three \| ([\d.]+) \| ([\d.]+) \|", performance)
    assert (plain, ours) in {(f"{float(a):.1f}", f"{float(b):.1f}") for a, b in rows}
    after, before = re.search(r"\| ([\d.]+) s instead of (\d+) s \|", README).groups()  # type: ignore[union-attr]
    assert f"{after} s after the change" in performance
    assert before in re.findall(r"\b\d+(?=(?:\.\d)? s)", performance)


def test_the_results_of_the_demo_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "docs" / "quality.json").read_text())
    fused, reranked = re.search(r"Fused ([\d.]+), Reranked ([\d.]+)", README).groups()  # type: ignore[union-attr]
    text = json.dumps(measured)
    late = next(float(value) for value in re.findall(r'"late": ([\d.]+)', text) if f"{float(value):.3f}" == reranked)
    assert late > float(fused)
    assert f"{fused} to {reranked}" in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
