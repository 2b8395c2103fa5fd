"""A run in a process of its own is one of the code location in the instance's records, and is not started again."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import yaml

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import LOCATION, MODULE, NOT_AGAIN, RETRIEVAL_BUNDLE, name_origin
from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE

ROOT = Path(__file__).resolve().parents[2]


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job(name=RETRIEVAL_BUNDLE)
def small() -> None:
    """Stand in for the job, whose name counts here."""
    nothing()


def test_the_records_list_a_run_under_the_code_location(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    ours = dg.RunsFilter(tags={".dagster/repository": f"{build_definitions().get_repository_def().name}@{LOCATION}"})
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        small.execute_in_process(instance=instance)
        assert instance.get_runs(ours) == []
        name_origin(instance, RETRIEVAL_BUNDLE)
        run_id = small.execute_in_process(instance=instance, tags=NOT_AGAIN).run_id
        (run,) = instance.get_runs(ours)
        assert (run.run_id, run.remote_job_origin.job_name) == (run_id, RETRIEVAL_BUNDLE)
        assert run.tags["dagster/code_location"] == LOCATION


def test_the_daemon_does_not_start_it_again(tmp_path: Path) -> None:
    @dg.job(name=RETRIEVAL_BUNDLE)
    def lost() -> None:
        nothing()

    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        name_origin(instance, RETRIEVAL_BUNDLE)
        for tags, again in (({}, "true"), (NOT_AGAIN, "false")):
            run = instance.create_run_for_job(lost, tags=tags, status=dg.DagsterRunStatus.STARTED)
            instance.report_run_failed(run, "its process is gone")
            ended = instance.get_run_by_id(run.run_id)
            assert ended is not None
            assert ended.tags.get("dagster/will_retry", "false") == again


def test_the_list_of_runs_has_room_for_the_tags_of_the_command_line() -> None:
    """It shows every tag that is not Dagster's own, and one of 40 letters stood out of its column."""
    shown = {key: value for key, value in (BY_COMMAND_LINE | NOT_AGAIN).items() if not key.startswith("dagster/")}
    assert shown
    assert max(len(f"{key}: {value}") for key, value in shown.items()) <= 20


def test_the_names_are_those_of_the_workspace_file() -> None:
    place = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"][0]["python_module"]
    assert (place["location_name"], place["module_name"]) == (LOCATION, MODULE)
