"""The code location: loads fast and light, names what the documentation names, and its files agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from ensemble_assets.build import build_definitions
from ensemble_assets.common.stages import PIPELINE
from ensemble_assets.orchestration.asset_frame import DEVICE_POOL
from ensemble_assets.orchestration.assets import ALL_ASSETS, SERVING_ASSETS
from ensemble_assets.orchestration.jobs import DENSE_ONLY, EVALUATE, RETRIEVAL_BUNDLE, UPLOAD
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.settings import options
from ensemble_assets_tests.orchestration.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "sentence_transformers", "openvino")


def test_importing_the_definitions_imports_no_heavy_library() -> None:
    code = f"import ensemble_assets.definitions, sys; print([m for m in {HEAVY} if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert finished.stdout.strip() == "[]"


OPENED = """
import importlib, sys
from ensemble_assets.build import PRELOADED
for name in PRELOADED:
    importlib.import_module(name)
preloaded = set(sys.modules)
import dagster as dg
with dg.DagsterInstance.get():
    print(len([name for name in set(sys.modules) - preloaded if name.startswith(("sqlalchemy", "alembic"))]))
"""


def test_the_process_of_a_step_has_the_libraries_of_the_database_before_it_is_forked(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-c", OPENED], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert int(finished.stdout) < 20, "the dialect of SQLite alone, of some 180"


def test_the_definitions_are_loadable() -> None:
    dg.Definitions.validate_loadable(build_definitions())


def test_the_eight_assets_share_partitions_io_manager_and_owners() -> None:
    names = [asset.key.to_user_string() for asset in ALL_ASSETS]
    assert names == [
        "chunks", "queries", "dense_embeddings", "sparse_vectors", "fused_candidates", "reranked_candidates",
        "evaluation", "export_bundle",
    ]  # fmt: skip
    for asset in ALL_ASSETS:
        spec = next(iter(asset.specs))
        assert asset.partitions_def == COLLECTIONS
        assert spec.owners
        assert spec.code_version
        assert spec.description


def test_every_asset_says_what_dagster_can_show() -> None:
    repository = build_definitions().get_repository_def()
    specs = [spec for asset in repository.assets_defs_by_key.values() for spec in asset.specs]
    assert len(specs) >= len(ALL_ASSETS) + 1
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.description, name
        assert spec.owners == ["team:retrieval"], name
        assert spec.group_name != "default", name
        assert spec.kinds, name
        assert spec.code_version, name
        assert spec.partitions_def == COLLECTIONS, name


def test_every_materialisation_has_a_data_version_and_tables_have_columns_and_lineage(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    made = {event.asset_key.path[-1]: event.materialization for event in outcome.result.all_events if event.asset_key
            and event.is_step_materialization}  # fmt: skip
    assert set(made) == {asset.key.to_user_string() for asset in ALL_ASSETS}
    for asset, materialization in made.items():
        assert materialization.tags["dagster/data_version"] == outcome.artefact(asset).version, asset
        assert materialization.partition == "notes"
    frames = {stage.asset: stage.main_frame for stage in PIPELINE if stage.main_frame}
    assert frames.keys() == {"chunks", "queries", "fused_candidates", "reranked_candidates"}
    for asset, frame in frames.items():
        schema = made[asset].metadata["dagster/column_schema"].value
        assert {column.name for column in schema.columns} == set(outcome.artefact(asset).frame(frame).columns)


def test_the_stages_that_lease_devices_are_in_one_pool_that_no_gpu_is_named_after() -> None:
    pooled = {asset.key.to_user_string() for asset in ALL_ASSETS if asset.op.pool == DEVICE_POOL}
    assert pooled == {"dense_embeddings", "sparse_vectors", "reranked_candidates"}
    assert "gpu" not in DEVICE_POOL, "the run log names it on machines without one"


def test_descriptions_are_sentences_without_marks_of_code() -> None:
    for asset in [*ALL_ASSETS, *SERVING_ASSETS]:
        (spec,) = asset.specs
        assert spec.description
        assert "`" not in spec.description, spec.key
        assert spec.description.partition("\n")[0].endswith("."), spec.key


def test_the_job_runs_all_assets() -> None:
    job = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE)
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {
        asset.key.to_user_string() for asset in ALL_ASSETS
    }


def test_workspace_file_and_code_location_name_the_same_module() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    assert workspace["load_from"][0]["python_module"]["module_name"] == "ensemble_assets.definitions"
    assert "[tool.dg" not in (ROOT / "pyproject.toml").read_text()
    assert "[tool.dagster" not in (ROOT / "pyproject.toml").read_text()


def test_the_instance_file_limits_the_gpu_pool_and_watches_runs(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 30
        assert instance.run_monitoring_settings["poll_interval_seconds"] == 15
        pools = instance.get_concurrency_config().pool_config
        assert (pools.default_pool_limit, pools.pool_granularity.value) == (1, "op")
        assert not instance.telemetry_enabled


def test_a_run_holds_the_gpu_pool_until_its_slot_is_freed(tmp_path: Path) -> None:
    """The call is the one that run monitoring makes for a run that crashed."""
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default(DEVICE_POOL)
        assert storage.get_concurrency_info(DEVICE_POOL).slot_count == 1
        assert storage.claim_concurrency_slot(DEVICE_POOL, "crashed", "dense_embeddings").is_claimed
        assert not storage.claim_concurrency_slot(DEVICE_POOL, "waiting", "sparse_vectors").is_claimed
        storage.free_concurrency_slots_for_run("crashed")
        assert storage.claim_concurrency_slot(DEVICE_POOL, "waiting", "sparse_vectors").is_claimed


def test_the_launchpad_form_has_every_option_with_its_default() -> None:
    resource = build_definitions().get_repository_def().get_top_level_resources()["settings"]
    fields = resource.config_schema.as_field().config_type.fields  # type: ignore[union-attr]
    shown = set()
    for name, field in fields.items():
        inner = getattr(field.config_type, "fields", None)
        shown |= {f"{name}.{key}" for key in inner} if inner else {name}
        assert not field.is_required
    assert set(options()) <= shown


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rerank": {"depth": "many"}}, "depth"),
        ({"rerank": {"detph": 5}}, "detph"),
        ({"fusion": {"method": "magic"}}, "not in enum type"),
        ({"rerank": {"depth": 0}}, "run config rerank.depth: 0 is not accepted.*at least 1"),
        ({"rerank": {"weight": 1.5}}, "rerank.weight: 1.5 is not accepted.*at most 1"),
        ({"models": {"ensemble": ["no-such-model"]}}, "no-such-model"),
    ],
)
def test_a_bad_value_is_refused_before_there_is_a_run(config: dict[str, object], message: str) -> None:
    job = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["x"])
        with pytest.raises((dg.DagsterInvalidConfigError, dg.DagsterConfigMappingFunctionError)) as refused:
            job.execute_in_process(
                partition_key="x",
                instance=instance,
                run_config={"resources": {"settings": {"config": config}}},
            )
        assert re.search(message, f"{refused.value} {refused.value.__cause__}")
        assert instance.get_run_records() == []


def test_the_four_jobs_need_no_run_configuration() -> None:
    definitions = build_definitions()
    for name in (RETRIEVAL_BUNDLE, DENSE_ONLY, EVALUATE, UPLOAD):
        assert dg.validate_run_config(definitions.resolve_job_def(name), None)
