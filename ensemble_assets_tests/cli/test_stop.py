"""Ctrl-C, a signal and a closed terminal stop a command at once, and leave nothing half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.artefacts.artefact import INDEX_NAME
from ensemble_assets.common.stopping import _without_interrupts, stop_when_asked
from ensemble_assets.compute.devices.lease_notes import list_leases
from ensemble_assets_tests.orchestration.pipeline import TOPICS, write_collection

ROOT = Path(__file__).parents[2]
MESSAGE = "Stopped; finished work is kept, run the same command to go on"
SECONDS = 20.0
"""The promise is two seconds; the rest is for a machine that is busy with other tests."""

NATIVE = """
import hashlib, os, signal, sys, threading
from ensemble_assets.common.stopping import stop_when_asked
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background commands with it ignored
with stop_when_asked(lambda: print("stopped", flush=True)):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # a minute without a Python instruction
"""

SIGNAL_AFTER_A_STEP = """
import signal, sys
import dagster as dg
from ensemble_assets.cli.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
handle = dg.DagsterInstance.handle_new_event
def heard(self, event, **words):
    handle(self, event, **words)
    step = event.dagster_event
    if step is not None and (step.event_type_value, step.step_key) == ("STEP_SUCCESS", "chunks"):
        signal.raise_signal(signal.SIGTERM)
dg.DagsterInstance.handle_new_event = heard
main()
"""
IMPORTING = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "ensemble_assets.cli.plan":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from ensemble_assets.cli.__main__ import main
main()
"""
EXITING = """
import atexit, signal, time
from ensemble_assets.common.stopping import end_if_asked, stop_when_asked
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(time.sleep, 60)
def nested():
    with stop_when_asked(lambda: None):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
with stop_when_asked(lambda: print("outer", flush=True)):
    nested()
    {then}
end_if_asked()
"""


def write_large_collection(folder: Path) -> None:
    folder.mkdir(parents=True)
    texts = [f"{n} " + " ".join(TOPICS[(n * k) % len(TOPICS)] + str(n + k) for k in range(60)) for n in range(3000)]
    (folder / "many_chunks.json").write_text(json.dumps([{"text": text} for text in texts]))


@pytest.mark.models
@pytest.mark.parametrize(("asked", "stage"), [("SIGINT", "dense"), ("SIGTERM", "chunks"), ("SIGHUP", "dense")])
def test_a_signal_stops_a_run(asked: str, stage: str, tmp_path: Path) -> None:
    write_large_collection(tmp_path / "corpora" / "many")
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {**os.environ, "DAGSTER_HOME": str(home), "EMBEDDER_PATHS_LOCK_DIR": str(tmp_path / "locks")}
    arguments = ["run", "--chunked-dir", "corpora", "--output-dir", "out", "--disable-sparse"]
    with subprocess.Popen(
        [sys.executable, "-m", "ensemble_assets.cli", *arguments],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if f"{stage} …" in line:
                break
        time.sleep(0.5 if stage == "dense" else 0)
        process.send_signal(getattr(signal, asked))
        sent = time.monotonic()
        rest = process.stderr.read()
        code = process.wait(SECONDS)
    assert (code, rest.count(MESSAGE)) == (130, 1), rest
    assert time.monotonic() - sent < SECONDS
    assert "fault of the program" not in rest
    assert list_leases(tmp_path / "locks") == []
    assert not (tmp_path / "out" / "many").exists()
    sealed = {path.parent for path in (tmp_path / "out").rglob(INDEX_NAME)}
    arrays = {path.parent for path in (tmp_path / "out").rglob("*.npy") if path.parent.name != "rows"}
    assert arrays <= sealed
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]


@pytest.mark.models
def test_a_terminals_interrupt_shows_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    """A terminal interrupts every process of its foreground group, the helpers of Dagster too."""
    write_large_collection(tmp_path / "corpora" / "many")
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    arguments = ["run", "--chunked-dir", "corpora", "--output-dir", "out", "--disable-sparse"]
    with subprocess.Popen(
        [sys.executable, "-m", "ensemble_assets.cli", *arguments],
        cwd=tmp_path, env={**os.environ, "DAGSTER_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "dense …" in line:
                break
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(SECONDS) == 130
    assert rest.strip() == MESSAGE


def test_an_interrupt_that_a_finaliser_swallows_is_not_printed() -> None:
    class Finalised:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    before = sys.unraisablehook
    with stop_when_asked(lambda: None):
        hook = sys.unraisablehook
        assert hook is not before
        seen: list[str] = []
        quiet = _without_interrupts(lambda unraisable: seen.append(unraisable.exc_type.__name__))
        sys.unraisablehook = quiet
        Finalised(KeyboardInterrupt())
        Finalised(dg.DagsterExecutionInterruptedError())
        Finalised(ValueError())
        sys.unraisablehook = hook
    assert seen == ["ValueError"]
    assert sys.unraisablehook is before


def test_native_code_does_not_hold_a_stop_up() -> None:
    with subprocess.Popen([sys.executable, "-c", NATIVE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(SECONDS) == 130


def test_a_run_that_is_stopped_between_two_stages_is_canceled_in_dagster(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    arguments = ["run", "--chunked-dir", "corpora", "--output-dir", "out"]
    finished = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_A_STEP, *arguments],
        cwd=tmp_path, env={**os.environ, "DAGSTER_HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr.count(MESSAGE)) == (130, 1), finished.stderr
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]


def test_a_slot_that_a_killed_run_left_holds_no_run_of_the_command_line_up(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("device")
        assert storage.claim_concurrency_slot("device", "a-run-that-was-killed", "dense_embeddings").is_claimed
    command = [sys.executable, "-m", "ensemble_assets.cli", "run", "--chunked-dir", "corpora", "--output-dir", "out"]
    finished = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "DAGSTER_HOME": str(home)}, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS]
        steps = instance.event_log_storage.get_concurrency_info("device").pending_steps
        assert {step.run_id for step in steps} == {"a-run-that-was-killed"}


def test_a_command_that_is_stopped_while_it_starts_says_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTING, "leases"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr.strip()) == (130, MESSAGE)


@pytest.mark.parametrize(("then", "said"), [("pass", ""), ("time.sleep(60)", "outer\n")])
def test_what_follows_a_stopped_block_and_the_end_of_the_process_take_no_longer(then: str, said: str) -> None:
    begun = time.monotonic()
    command = [sys.executable, "-c", EXITING.format(then=then)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (finished.returncode, finished.stdout) == (130, said), finished.stderr
    assert time.monotonic() - begun < SECONDS


FORKING = """
import os, time
from ensemble_assets.common.stopping import stop_when_asked
with stop_when_asked(lambda: None):
    child = os.fork()
    if not child:
        time.sleep(3)
        print("the child is over", flush=True)
        os._exit(0)
print("the block is over", flush=True)
os.waitpid(child, 0)
"""


def test_a_block_does_not_wait_for_a_forked_child_that_has_its_pipe() -> None:
    finished = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == ["the block is over", "the child is over"]


def test_a_search_that_is_stopped_promises_nothing(tmp_path: Path) -> None:
    """Models that load do not hear an interrupt, and there is no work to go on with."""
    bundle = tmp_path / "output" / "notes"
    bundle.mkdir(parents=True)
    (bundle / "x_qdrant.jsonl").touch()
    program = (
        "import os, signal, time\n"
        "from ensemble_assets.asking import searcher\n"
        "class Loading:\n"
        "    def __init__(self, *_):\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "        except KeyboardInterrupt:\n"
        "            time.sleep(9)\n"
        "searcher.Searcher = Loading\n"
        "from ensemble_assets.cli.main import main\n"
        "main(['search', 'output/notes', 'where'])\n"
    )
    stopped = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (stopped.returncode, stopped.stderr.strip()) == (130, "")
