"""A deployment in a temporary folder: SQLite instance from the repository's ``dagster.yaml``, daemon, collections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psutil

from ensemble_assets.orchestration.asset_frame import DEVICE_POOL

ROOT = Path(__file__).resolve().parents[2]
LOCATION = "ensemble_assets_tests.operations.location"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass
class Deployment:
    """Everything below one folder.

    Attributes:
        root: the folder.
        location: module of the code location.
        daemon: the process of ``dagster-daemon run``, while there is one.
    """

    root: Path
    location: str = LOCATION
    daemon: subprocess.Popen[bytes] | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.corpora.mkdir(exist_ok=True)
        (self.home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EMBEDDER_", "DAGSTER_"))}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "DAGSTER_HOME": str(self.home),
            "EMBEDDER_CHUNKED_DIR": str(self.corpora),
            "EMBEDDER_OUTPUT_DIR": str(self.output),
            "EMBEDDER_PATHS_LOCK_DIR": str(self.locks),
            "EMBEDDER_PATHS_CACHE_DIR": str(self.root / "cache"),
            "EMBEDDER_KEY_FILE": str(self.root / "key"),
            "EMBEDDER_OPERATIONS_SETTLE_SECONDS": "0",
            "EMBEDDER_DEVICE_THREADS": "1",
            "EMBEDDER_DEVICE_LEASE_CPU": "on",
            **self.variables,
        }

    def dagster(self, *arguments: str) -> str:
        """Run a command of Dagster's to its end; what it printed.

        Its success shows in the instance, not in its exit code: on a busy machine it may fail to end its own code
        server in time.
        """
        command = [str(Path(sys.executable).parent / "dagster"), *arguments]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def start_daemon(self) -> None:
        """As systemd would: in a session of its own."""
        command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-m", self.location]
        log = (self.home / "daemon.log").open("ab")
        self.daemon = subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def kill_daemon(self) -> None:
        """SIGKILL to the daemon alone: what it started stays."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def kill_everything(self) -> None:
        """SIGKILL to every process of this deployment, as when the power fails."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.daemon is not None:
            self.daemon.wait()

    def stop(self) -> None:
        """End the daemon and everything that works on this deployment."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
        self.kill_everything()

    def processes(self) -> list[psutil.Process]:
        """Every process of this deployment: those whose environment names its home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAGSTER_HOME") == str(self.home):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def wait(self, until: Callable[[dg.DagsterInstance], bool], seconds: float, what: str) -> float:
        """Wait until a condition of the instance holds; how long that took.

        Raises:
            TimeoutError: with the state of the runs and the daemon's last words.
        """
        started = time.monotonic()
        with self.instance() as instance:
            while not until(instance):
                if time.monotonic() - started > seconds:
                    words = (self.home / "daemon.log").read_text(errors="replace")[-3000:]
                    raise TimeoutError(f"{what} did not come in {seconds:.0f} s: {self.statuses(instance)}\n{words}")
                time.sleep(0.5)
        return time.monotonic() - started

    @staticmethod
    def statuses(instance: dg.DagsterInstance) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(record.dagster_run.status.value for record in instance.get_run_records())

    def taken_slots(self, instance: dg.DagsterInstance) -> int:
        """Slots of the pool ``device`` that somebody holds or waits for."""
        info = instance.event_log_storage.get_concurrency_info(DEVICE_POOL)
        return info.active_slot_count + info.pending_step_count

    def busy_slots(self, instance: dg.DagsterInstance) -> int:
        """Slots of the pool ``device`` that a step holds."""
        return instance.event_log_storage.get_concurrency_info(DEVICE_POOL).active_slot_count

    def leases(self) -> list[tuple[float, float, str]]:
        """When devices were held and by what, from the events in the artefacts: (from, to, collection and stage)."""
        held = []
        for folder in sorted(self.output.glob(".artifacts/*/*")):
            current = folder / "current"
            if not current.is_file():
                continue
            facts = json.loads((folder / current.read_text().strip() / "artefact.json").read_text())["facts"]
            taken = [event for event in facts["events"] if event["name"] == "lease.acquired"]
            given = [event for event in facts["events"] if event["name"] == "lease.released"]
            name = f"{folder.parent.name} {folder.name}"
            held += [(a["at"], b["at"], name) for a, b in zip(taken, given, strict=True)]
        return sorted(held)

    def complete_bundles(self) -> list[str]:
        """Collections whose bundle has its manifest."""
        return sorted(path.parent.name for path in self.output.glob("*/processing_summary.json"))

    def leftovers(self) -> list[str]:
        """Partial files and folders anywhere below the output."""
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*.partial"))

    def database_errors(self) -> list[str]:
        """Lines of the daemon's log and of run events that speak of a locked database."""
        lines = (self.home / "daemon.log").read_text(errors="replace").splitlines()
        with self.instance() as instance:
            for record in instance.get_run_records():
                lines += [repr(entry) for entry in instance.all_logs(record.dagster_run.run_id) if entry.level >= 40]
        return [line[:300] for line in lines if "database is locked" in line]


def all_finished(count: int) -> Callable[[dg.DagsterInstance], bool]:
    """Whether at least ``count`` runs are over and none is under way."""

    def check(instance: dg.DagsterInstance) -> bool:
        records = instance.get_run_records()
        return len(records) >= count and not any(r.dagster_run.status in UNFINISHED for r in records)

    return check


def by_collection(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """States of a collection's runs, the latest first."""
    found: dict[str, list[str]] = {}
    for record in instance.get_run_records():
        name = record.dagster_run.tags.get("dagster/partition", "")
        found.setdefault(name, []).append(record.dagster_run.status.value)
    return found


def step_processes(instance: dg.DagsterInstance) -> dict[str, tuple[str, int]]:
    """The step that each started run is at, and the process that executes it, by run."""
    found: dict[str, tuple[str, int]] = {}
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        run = record.dagster_run.run_id
        pids: dict[str, int] = {}
        for entry in instance.all_logs(run):
            event = entry.dagster_event
            if event is None or event.step_key is None:
                continue
            if event.event_type_value == "STEP_WORKER_STARTED":
                pids[event.step_key] = int(str(event.event_specific_data.metadata["pid"].value))
            elif event.event_type_value in ("STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"):
                pids.pop(event.step_key, None)
        for step, pid in pids.items():
            found[run] = (step, pid)
    return found
