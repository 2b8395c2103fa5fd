"""Every benchmark is a command that starts: what it imports is there, and it says how it is used."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from ensemble_assets_tests import benchmarks

NAMES = sorted(
    f"{module.name}.__main__" if module.ispkg else module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if not module.name.startswith("test_")
)
COMMANDS = [name for name in NAMES if hasattr(importlib.import_module(f"{benchmarks.__name__}.{name}"), "main")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_says_how_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"{benchmarks.__name__}.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
