"""Commands that run nothing start without Dagster and torch; ``--help`` starts without any heavy library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_assets.cli.main import main
from ensemble_assets_tests.export.checks.bundles import plain
from ensemble_assets_tests.orchestration.pipeline import write_collection

ROOT = Path(__file__).resolve().parents[2]
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


def modules_after(*arguments: str, cwd: Path, expected: int = 0) -> set[str]:
    """Run a command in a process of its own, and list the modules that it imported."""
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    code, modules = json.loads(finished.stderr.splitlines()[-1])
    assert code == expected, finished.stdout + finished.stderr
    return set(modules)


@pytest.mark.parametrize("command", ["doctor", "leases", "validate", "report"])
def test_commands_that_run_nothing_start_without_dagster_and_torch(command: str, tmp_path: Path) -> None:
    bundle = [str(plain(tmp_path / "output").folder)] if command in ("validate", "report") else []
    assert not modules_after(command, *bundle, cwd=tmp_path) & set(HEAVY)


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("plan", "--help")])
def test_help_starts_without_heavy_libraries(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert not modules_after(*arguments, cwd=tmp_path) & {*HEAVY, "numpy", "polars", "rich.console"}


def test_a_terminal_that_does_not_know_the_letters_of_a_name_shows_their_numbers(tmp_path: Path) -> None:
    program = PROGRAM + "from rich.console import Console; Console().print('文档')"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program, "leases"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ascii_only, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == r"\u6587\u6863"


def test_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    gone = "import os, sys; os.rmdir(os.getcwd()); from ensemble_assets.cli.main import main; main(['leases'])"
    (tmp_path / "gone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", gone],
        capture_output=True,
        text=True,
        cwd=tmp_path / "gone",
        env=environment,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr == "Error: the folder that this was started in is gone. Go to another one\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--profile", "nope"),
        ("run", "--set", "models.dens=bge-m3"),
        ("run", "--ensemble-models", "bge-m4"),
        ("run", "--chunked-dir", "nowhere"),
        ("plan", "--profile", "nope"),
        ("plan", "--chunked-dir", "nowhere"),
        ("chunk", "nowhere", "--into", "notes"),
        ("doctor", "--profile", "nope"),
        ("search", "nowhere", "a question"),
        ("search", "nowhere", " "),
        ("validate", "nowhere"),
        ("report", "nowhere"),
        ("upload", "nowhere"),
        ("show", "nowhere"),
        ("evaluate", "nowhere"),
        ("fit-fusion", "nowhere", "--qrels", "train.tsv"),
        ("baseline", "accept", "nowhere"),
        ("baseline", "sla", "nowhere"),
    ],
)
def test_a_mistake_is_said_before_heavy_libraries_are_imported(arguments: tuple[str, ...], tmp_path: Path) -> None:
    imported = modules_after(*arguments, cwd=tmp_path, expected=2)
    assert not imported & {*HEAVY, "polars", "rich.console", "opentelemetry.sdk", "fsspec"}


@pytest.mark.models
def test_a_default_run_with_converted_models_imports_no_library_of_networks(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")

    def run(into: str) -> set[str]:
        key = f"paths.key_file={tmp_path / 'key'}"
        return modules_after("run", "--chunked-dir", "corpora", "--output-dir", into, "--set", key, cwd=tmp_path)

    run("first")  # converts the models, where this machine has not
    assert not run("second") & set(NETWORKS)
    assert not run("second") & {*NETWORKS, "openvino", "numba"}, "nothing is new, so nothing is computed"


def test_help_has_whole_sentences_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ((), ("baseline",)):
        with pytest.raises(SystemExit):
            main([*group, "--help"])
        said = capsys.readouterr().out
        listed = said.partition("Commands:")[2]
        assert listed
        assert "..." not in listed
        assert max(map(len, said.splitlines())) <= 80
