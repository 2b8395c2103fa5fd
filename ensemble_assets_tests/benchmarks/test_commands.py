"""Every benchmark is a command that starts: what it imports is there, and it says how it is used."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from ensemble_assets_tests import benchmarks
from ensemble_assets_tests.benchmarks import stop_moments, telemetry_overhead

NAMES = sorted(
    f"{module.name}.__main__" if module.ispkg else module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if not module.name.startswith("test_")
)
COMMANDS = [name for name in NAMES if hasattr(importlib.import_module(f"{benchmarks.__name__}.{name}"), "main")]


def test_stopped_runs_are_summed_up_also_where_none_was_stopped() -> None:
    assert stop_moments.summary([0.5, 0.1, 0.2]) == "most 0.50 s, median 0.20 s, of 3 stopped runs"
    assert stop_moments.summary([]) == "no run was stopped: each had ended before its signal"


def test_overhead_needs_two_turns_for_quartiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["telemetry_overhead", "--repeats", "1"])
    with pytest.raises(SystemExit) as ended:
        telemetry_overhead.main()
    assert ended.value.code == 2
    assert "expected at least 2" in capsys.readouterr().err


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
