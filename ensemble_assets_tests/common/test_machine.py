"""Processes are looked up as psutil looks them up, which the program does without."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ensemble_assets.common import machine
from ensemble_assets.common.machine import process_began, process_family, resident_bytes

SLEEPER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""


def test_a_process_its_family_and_its_memory_are_what_psutil_says() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    try:
        until = time.monotonic() + 60
        while len(psutil.Process().children(recursive=True)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        family = {process.pid for process in psutil.Process().children(recursive=True)}
        assert process_family() == family | {os.getpid()}
        for pid in (os.getpid(), *family):
            began = process_began(pid)
            assert began is not None
            assert abs(began - psutil.Process(pid).create_time()) < 1.0
        assert 0.5 < resident_bytes(os.getpid()) / psutil.Process().memory_info().rss < 2.0
    finally:
        os.killpg(child.pid, 9)
    until = time.monotonic() + 60
    while process_began(child.pid) is not None and time.monotonic() < until:
        time.sleep(0.02)
    assert process_began(child.pid) is None, "killed, though nobody has waited for it"
    child.wait()
    assert process_began(child.pid) is None
    assert resident_bytes(child.pid) == 0


def test_a_name_with_blanks_and_brackets_is_no_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = "S 77 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 500 1 1"
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711" / "stat").write_text(f"4711 (a) b (c) {fields}")
    (tmp_path / "stat").write_text("cpu 1 2\nbtime 1700000000\n")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert process_began(4711) == 1_700_000_000 + 500 / os.sysconf("SC_CLK_TCK")


def test_a_process_that_another_user_hides_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert process_began(os.getpid()) == 0.0
