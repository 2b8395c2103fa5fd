"""Makes the pictures in ``docs/pictures``: ``python -m ensemble_assets_tests.ui.pictures`` (``make pictures``).

Runs the demo into a fresh instance, opens its report and the UI in headless Chromium and takes screenshots. Needs
Chromium, Playwright and Pillow.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ensemble_assets_tests.ui.browser import page
from ensemble_assets_tests.ui.server import ROOT, dagster_ui

LOAD_MS = 120_000
MAX_BYTES = 200_000
REPORT_SIZE = (900, 1500)
COLLECTION = "pydoc"
COMMANDS = {
    "terminal-search": ("search", "can a list be the key of a dictionary?", "--top", "2", "--explain"),
    "terminal-show": ("show", "q53", "--top", "4"),
}
"""Pictures of the terminal: a command with its arguments after the bundle."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--run", type=Path, help="folder with home/ and output/ of a demo run that is there already")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ensemble-assets-") as scratch:
        run = given.run or Path(scratch)
        corpora = Path(scratch) / "corpora"  # pictures show the path
        shutil.copytree(ROOT / "ensemble_assets" / "sample" / COLLECTION, corpora / COLLECTION)
        if given.run is None:
            run_demo(run / "home", run / "output")
        report(run / "output" / f"{COLLECTION}.report.html", given.folder)
        terminal(run / "output" / COLLECTION, given.folder)
        with dagster_ui(run / "home", corpora, run / "output") as url:
            with page() as tab:
                asset_graph(tab, url, given.folder / "asset-graph.png")
                checks(tab, url, given.folder / "checks.png")
                launchpad(tab, url, given.folder / "launchpad.png")
                automations(tab, url, given.folder / "automations.png")
            with page(height=1500) as tab:
                materialisation(tab, url, given.folder / "materialisation.png")
    for picture in sorted(given.folder.glob("*.png")):
        shrink(picture)


def run_demo(home: Path, output: Path) -> None:
    """The demo collection, recorded on the instance in ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    command = [sys.executable, "-m", "ensemble_assets.cli", "demo", "--output-dir", str(output)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "DAGSTER_HOME": str(home)})


def report(source: Path, folder: Path) -> None:
    """The run report, light and dark."""
    for mode in ("light", "dark"):
        with page(*REPORT_SIZE, dark=mode == "dark") as tab:
            tab.goto(source.absolute().as_uri())
            tab.screenshot(path=str(folder / f"report-{mode}.png"))


def terminal(bundle: Path, folder: Path) -> None:
    """What a question and the changes of reranking look like in a terminal."""
    from rich.console import Console
    from rich.text import Text

    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "ensemble_assets.cli", arguments[0], str(bundle), *arguments[1:]]
        environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
        printed = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
        console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        typed = " ".join(f'"{word}"' if " " in word else word for word in arguments[1:])
        console.print(Text(f"$ ensemble-assets {arguments[0]} output/{COLLECTION} {typed}", "bold"))
        console.print(Text.from_ansi(printed))
        with page(900, 200) as tab:
            tab.set_content(console.export_html())
            tab.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def launchpad(tab: Any, url: str, path: Path) -> None:
    """The Launchpad as it opens: a dozen options in pipeline order."""
    tab.goto(f"{url}/locations/ensemble_assets/jobs/retrieval_bundle/playground", wait_until="domcontentloaded")
    tab.locator(".CodeMirror").first.wait_for(timeout=LOAD_MS)
    tab.wait_for_timeout(4000)
    tab.screenshot(path=str(path))


def automations(tab: Any, url: str, path: Path) -> None:
    """The four automations; two of them run collections."""
    tab.goto(f"{url}/automation", wait_until="domcontentloaded")
    tab.get_by_text("housekeeping").first.wait_for(timeout=LOAD_MS, state="attached")
    tab.wait_for_timeout(3000)
    tab.screenshot(path=str(path))


def asset_graph(tab: Any, url: str, path: Path) -> None:
    """The assets, as what the bundle is made of."""
    tab.goto(f"{url}/assets/export_bundle?view=lineage&lineageScope=upstream", wait_until="domcontentloaded")
    tab.get_by_text("export_bundle").first.wait_for(timeout=LOAD_MS, state="attached")
    tab.wait_for_timeout(15_000)  # names come before edges and states
    tab.screenshot(path=str(path))


def materialisation(tab: Any, url: str, path: Path) -> None:
    """The bundle's latest materialisation, with one of its pictures opened."""
    tab.goto(f"{url}/assets/export_bundle?view=partitions&partition={COLLECTION}", wait_until="domcontentloaded")
    tab.get_by_text("stage_times").first.wait_for(timeout=LOAD_MS, state="attached")
    tab.get_by_role("row", name="stage_times").get_by_text("Show Markdown").click()
    tab.wait_for_timeout(3000)
    tab.screenshot(path=str(path))


def checks(tab: Any, url: str, path: Path) -> None:
    """The gates of the bundle as asset checks."""
    tab.goto(f"{url}/assets/export_bundle?view=checks", wait_until="domcontentloaded")
    tab.get_by_text("no_raw_queries").first.wait_for(timeout=LOAD_MS, state="attached")
    tab.wait_for_timeout(2000)
    tab.screenshot(path=str(path))


def shrink(path: Path) -> None:
    """A palette instead of full colour: a quarter of the size, and no difference that anybody sees in a screenshot."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES, f"{path.name} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main()
