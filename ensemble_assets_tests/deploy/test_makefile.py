"""``make install`` installs the torch that was asked for; ``make test-gpu`` installs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_another_torch_is_installed_and_the_same_is_not(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\n')
    python.chmod(0o755)

    def install(*arguments: str) -> list[str]:
        asked = tmp_path / "asked"
        asked.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH")}
        subprocess.run(["make", "install", *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True)
        return asked.read_text().splitlines() if asked.exists() else []

    assert len(install()) == 2
    assert install() == []
    again = install("TORCH=torch")
    assert again[0].endswith("--force-reinstall torch")
    assert install("TORCH=torch") == []
    assert install() == [], "what was asked for stays"


def test_the_tests_of_a_gpu_install_nothing(tmp_path: Path) -> None:
    """A machine with a card may have no network: they run with the Python that is there."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    command = ["make", "test-gpu", f"PYTHON={python}"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "asked").read_text().splitlines() == ["-m pytest -m gpu -rs ensemble_assets_tests/gpu"]
    assert not (tmp_path / ".venv").exists()
