"""A run that is cancelled in the UI ends in the middle of its stage, and no step of it is tried again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets_tests.orchestration.pipeline import Pipeline

PROGRAM = """
import json, sys, time
from pathlib import Path
import dagster as dg
from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.pipeline.stage_run import Progress

class Slow(Progress):
    def stage_started(self, stage, collection):
        if stage == "queries":
            Path("began").touch()
            time.sleep(60)

def job():
    return build_definitions(progress=Slow()).resolve_job_def(RETRIEVAL_BUNDLE)

if __name__ == "__main__":
    home, run_id = sys.argv[1:]
    with dg.DagsterInstance.from_config(home) as instance:
        from cancelled import job as here
        from dagster._core.execution.api import execute_run
        execute_run(dg.reconstructable(here), instance.get_run_by_id(run_id), instance, raise_on_error=False)
"""


def test_a_cancelled_run_ends_and_tries_nothing_again(pipeline: Pipeline) -> None:
    home = pipeline.root / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (pipeline.root / "cancelled.py").write_text(PROGRAM)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{pipeline.root}",
    }
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        job = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE)
        run = instance.create_run_for_job(job, run_config=pipeline.config(), tags={"dagster/partition": "notes"})
        command = [sys.executable, str(pipeline.root / "cancelled.py"), str(home), run.run_id]
        with subprocess.Popen(command, env=environment, cwd=pipeline.root) as process:
            until = time.monotonic() + 120
            while not (pipeline.root / "began").exists():  # the step starts earlier, in Dagster's own code
                assert time.monotonic() < until
                time.sleep(0.1)
            instance.report_run_canceling(run)
            process.send_signal(signal.SIGINT)
            process.wait(30)
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED
        kinds = {e.dagster_event.event_type_value for e in instance.all_logs(run.run_id) if e.dagster_event}
        assert not {"STEP_UP_FOR_RETRY", "STEP_RESTARTED"} & kinds
