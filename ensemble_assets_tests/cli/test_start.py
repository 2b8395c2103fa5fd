"""Commands that run nothing start without Dagster and torch; ``--help`` starts without any heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_assets_tests.export.checks.bundles import plain
from ensemble_assets_tests.orchestration.pipeline import write_collection

NETWORKS = ("torch", "transformers", "sentence_transformers")
"""They take two seconds to import."""

HEAVY = (*NETWORKS, "dagster", "scipy.stats")
PROGRAM = """
import json, sys
from ensemble_assets.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def modules_after(*arguments: str, cwd: Path) -> set[str]:
    """Run a command in a process of its own, and list the modules that it imported."""
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    code, modules = json.loads(finished.stderr.splitlines()[-1])
    assert code == 0, finished.stdout + finished.stderr
    return set(modules)


@pytest.mark.parametrize("command", ["doctor", "leases", "validate", "report"])
def test_commands_that_run_nothing_start_without_dagster_and_torch(command: str, tmp_path: Path) -> None:
    bundle = [str(plain(tmp_path / "output").folder)] if command in ("validate", "report") else []
    assert not modules_after(command, *bundle, cwd=tmp_path) & set(HEAVY)


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("plan", "--help")])
def test_help_starts_without_heavy_libraries(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert not modules_after(*arguments, cwd=tmp_path) & {*HEAVY, "numpy", "polars", "rich.console"}


@pytest.mark.models
def test_a_default_run_with_converted_models_imports_no_library_of_networks(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")

    def run(into: str) -> set[str]:
        key = f"paths.key_file={tmp_path / 'key'}"
        return modules_after("run", "--chunked-dir", "corpora", "--output-dir", into, "--set", key, cwd=tmp_path)

    run("first")  # converts the models, where this machine has not
    assert not run("second") & set(NETWORKS)
