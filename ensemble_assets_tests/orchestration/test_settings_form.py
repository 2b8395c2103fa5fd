"""The settings of a run: resolved once, the same for all steps, and shown in the Launchpad as the models have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster import validate_run_config
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

from ensemble_assets.build import build_definitions
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stages import STAGE
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.resources import settings_form, settings_run_config
from ensemble_assets.pipeline.stage_run import Progress
from ensemble_assets.settings import Settings, flatten, options, resolution, resolve
from ensemble_assets.settings.sources import dotted
from ensemble_assets_tests.orchestration.pipeline import Pipeline


class Watch(Progress):
    """Calls ``at`` with ("started" or "finished", stage)."""

    def __init__(self, at: Callable[[str, str], None]) -> None:
        self.at = at

    def stage_started(self, stage: str, collection: str) -> None:
        self.at("started", stage)

    def stage_finished(self, collection: str, record: Any) -> None:
        self.at("finished", record.stage)


def run(pipeline: Pipeline, watch: Watch) -> dg.ExecuteInProcessResult:
    job = build_definitions(computing=pipeline.computing, progress=watch).resolve_job_def(RETRIEVAL_BUNDLE)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        return job.execute_in_process(partition_key="notes", instance=instance, run_config=pipeline.config())


def test_the_configuration_is_not_read_again_once_a_run_has_begun(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    monkeypatch.setattr(
        resolution, "read_layers", lambda *args, read=resolution.read_layers: reads.append(1) or read(*args)
    )
    counts: dict[tuple[str, str], int] = {}
    assert run(pipeline, Watch(lambda event, stage: counts.setdefault((event, stage), len(reads)))).success
    assert counts[("started", "chunks")] > 0
    assert len(set(counts.values())) == 1, counts
    assert len(reads) == counts[("started", "chunks")]


def test_all_steps_of_a_run_see_one_configuration_even_if_the_file_changes_meanwhile(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "ensemble.yaml"
    file.write_text("export: {prefix: before}\nsparse: {top_k: 7}\n")

    def change(event: str, stage: str) -> None:
        if (event, stage) == ("finished", "chunks"):
            file.write_text("export: {prefix: after}\nsparse: {top_k: many}\n")

    assert run(pipeline, Watch(change)).success
    names = [path.name for path in (tmp_path / "output" / "notes").iterdir()]
    assert any(name.startswith("before") for name in names)
    assert not any(name.startswith("after") for name in names)


def test_a_value_that_is_changed_in_the_form_wins_and_the_others_keep_their_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ensemble.yaml").write_text("rerank: {depth: 7}\nmodels: {ensemble: [a, b]}\n")
    form = settings_form(resolve().settings)
    config = settings_run_config({"sparse.top_k": 9, "models.sparse": ("s",)}, {"sparse.top_k": "--set sparse.top_k"})
    resolved = form(**config["resources"]["settings"]["config"]).resolved()
    assert (resolved.settings.sparse.top_k, resolved.settings.rerank.depth) == (9, 7)
    assert (resolved.settings.models.sparse, resolved.settings.models.ensemble) == (("s",), ("a", "b"))
    rows = resolved.provenance("sparse.top_k", "models.sparse", "rerank.depth", "models.ensemble", "fusion.depth")
    assert [(row["layer"], row["source"]) for row in rows] == [
        ("run", "--set sparse.top_k"),
        ("run", "run config models.sparse"),
        ("config file", "ensemble.yaml rerank.depth"),
        ("config file", "ensemble.yaml models.ensemble"),
        ("default", "default"),
    ]


def test_a_value_out_of_bounds_in_the_form_is_refused_in_the_words_of_the_option() -> None:
    form = settings_form(Settings())
    with pytest.raises(
        SettingsError, match=r"run config rerank\.depth: 0 is not accepted .* at least 1, at most 1,000"
    ):
        form(rerank={"depth": 0}).resolved()


def test_the_form_shows_help_accepted_values_and_variable_of_every_option() -> None:
    form = settings_form(Settings())
    for key, option in options().items():
        fields = form.model_fields
        for name in key.split(".")[:-1]:
            fields = fields[name].annotation.model_fields  # type: ignore[union-attr]
        field = fields[option.key.rpartition(".")[2]]
        assert option.field.description
        for words in (option.field.description, option.accepted, option.variable):
            assert words in field.description  # type: ignore[operator]
        shown = tuple(field.default) if isinstance(field.default, list) else field.default
        assert shown == flatten(Settings())[key]


def launchpad_text() -> dict[str, Any]:
    """The text that the Launchpad opens with, as the server makes it."""
    made = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE).get_job_snapshot()
    schema = made.config_schema_snapshot
    root = schema.get_config_snap(str(made.mode_def_snaps[0].root_config_key))
    return dict(yaml.safe_load(default_values_yaml_from_type_snap(schema, root))["resources"]["settings"]["config"])


def test_the_launchpad_opens_with_a_dozen_options_in_the_order_of_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = launchpad_text()
    assert len(dotted(text)) == 12
    assert list(text) == ["chunks", "enable_rerank", "enable_sparse", "models", "queries", "rerank"]
    stages = [name for name in text if name in STAGE]
    assert stages == [name for name in STAGE if name in stages]


def test_the_launchpad_shows_what_this_installation_sets_otherwise_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ensemble.yaml").write_text("fusion: {depth: 50}\nrerank: {depth: 7}\n")
    text = launchpad_text()
    assert text["fusion"] == {"depth": 50}
    assert text["rerank"]["depth"] == 7


def test_every_option_can_be_given_in_the_launchpad_also_those_that_it_does_not_open_with() -> None:
    job = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE)
    everything = settings_run_config(flatten(Settings()), {})
    assert validate_run_config(job, everything)
    with pytest.raises(dg.DagsterInvalidConfigError):
        validate_run_config(job, settings_run_config({"fusion.method": "magic"}, {}))


def test_the_terminal_of_the_ui_and_the_log_of_a_run_get_a_sentence_a_stage(
    pipeline: Pipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dagster.yaml").write_text((Path(__file__).parents[2] / "dagster.yaml").read_text())
    job = build_definitions(computing=pipeline.computing).resolve_job_def(RETRIEVAL_BUNDLE)
    config = {name: content for name, content in pipeline.config().items() if name != "loggers"}
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        result = job.execute_in_process(partition_key="notes", instance=instance, run_config=config)
        entries = instance.all_logs(result.run_id)
        logged = [entry.user_message for entry in entries]
        assert "STEP_START" in {entry.dagster_event.event_type_value for entry in entries if entry.dagster_event}
    captured = capfd.readouterr()
    printed = captured.out + captured.err
    for stage in STAGE:
        (sentence,) = [message for message in logged if message.startswith(f"{stage} of notes: completed, ")]
        assert sentence in printed
    assert "STEP_START" not in printed
