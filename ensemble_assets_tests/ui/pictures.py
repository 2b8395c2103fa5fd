"""Makes the pictures in ``docs/pictures``: ``python -m ensemble_assets_tests.ui.pictures`` (``make pictures``).

Runs the demo into a fresh instance, opens the UI and takes screenshots. Needs Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ensemble_assets_tests.ui.browser import page
from ensemble_assets_tests.ui.server import ROOT, dagster_ui

LOAD_MS = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "pictures")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home, output = Path(scratch) / "home", Path(scratch) / "output"
        run_demo(home, output)
        with dagster_ui(home, ROOT / "ensemble_assets" / "sample", output) as url, page() as tab:
            asset_graph(tab, url, folder / "asset-graph.png")
            materialisation(tab, url, folder / "materialisation.png")


def run_demo(home: Path, output: Path) -> None:
    """The demo collection, recorded on the instance in ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    command = [sys.executable, "-m", "ensemble_assets.cli", "demo", "--output-dir", str(output)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "DAGSTER_HOME": str(home)})


def asset_graph(tab: Any, url: str, path: Path) -> None:
    """The seven assets, as what the bundle is made of."""
    tab.goto(f"{url}/assets/export_bundle?view=lineage&lineageScope=upstream", wait_until="domcontentloaded")
    tab.get_by_text("chunks", exact=True).first.wait_for(timeout=LOAD_MS)
    tab.wait_for_timeout(4000)
    tab.screenshot(path=str(path))


def materialisation(tab: Any, url: str, path: Path) -> None:
    """One asset's latest materialisation with its metadata; one whose metadata names no folder of this machine."""
    tab.goto(f"{url}/assets/reranked_candidates?view=partitions&partition=pydoc", wait_until="domcontentloaded")
    tab.get_by_text("pairs_scored").first.wait_for(timeout=LOAD_MS)
    tab.wait_for_timeout(2000)
    tab.screenshot(path=str(path))


if __name__ == "__main__":
    main()
