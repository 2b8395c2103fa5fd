"""The deployment files: loaded by what will load them, as far as that works without the servers that they name."""

import configparser
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from ensemble_assets.settings import flatten, options, resolve

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
ELSEWHERE = ("storage", "run_launcher")
"""Parts of an instance file whose making needs a server; their configuration is checked by their own classes."""


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def check_class_config(config_type: Any, config: Mapping[str, Any]) -> None:
    """Let Dagster's own check look at the configuration of an instance class.

    Raises:
        DagsterInvalidConfigError: if it is not accepted.
    """

    @dg.op(config_schema=config_type)
    def holder() -> None: ...

    @dg.job
    def job() -> None:
        holder()

    dg.validate_run_config(job, {"ops": {"holder": {"config": config}}})


@pytest.mark.parametrize("name", ["kubernetes/dagster.yaml", "ray/dagster.yaml"])
def test_the_instance_files_load(name: str, tmp_path: Path) -> None:
    content = load(name)
    assert set(ELSEWHERE) <= set(content)
    here = {key: value for key, value in content.items() if key not in ELSEWHERE}
    if "local_artifact_storage" in here:
        here["local_artifact_storage"]["config"]["base_dir"] = str(tmp_path)
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(here))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 120
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 1


@pytest.mark.parametrize("name", ["kubernetes/dagster.yaml", "ray/dagster.yaml"])
def test_the_storage_is_what_dagster_postgres_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = pytest.importorskip("dagster_postgres", reason="comes with ensemble-assets[kubernetes]")
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql://x@localhost/x")
    check_class_config(postgres.DagsterPostgresStorage.config_type(), load(name)["storage"]["postgres"])
    with pytest.raises(dg.DagsterInvalidConfigError):
        check_class_config(postgres.DagsterPostgresStorage.config_type(), {"postgres_address": "x"})


def test_the_kubernetes_launcher_takes_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    dagster_k8s = pytest.importorskip("dagster_k8s", reason="comes with ensemble-assets[kubernetes]")
    monkeypatch.setenv("DAGSTER_K8S_NAMESPACE", "dagster")
    launcher = load("kubernetes/dagster.yaml")["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")
    check_class_config(dagster_k8s.K8sRunLauncher.config_type(), launcher["config"])
    for part, model in (("container_config", "V1Container"), ("pod_spec_config", "V1PodSpec")):
        check_fields(launcher["config"]["run_k8s_config"][part], model, f"run_k8s_config.{part}", snake_case=True)


def test_the_ray_launcher_takes_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    dagster_ray = pytest.importorskip("dagster_ray", reason="dagster-ray is installed by hand, see docs/deployment.md")
    monkeypatch.setenv("RAY_ADDRESS", "http://ray-head:8265")
    launcher = load("ray/dagster.yaml")["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_ray", "RayRunLauncher")
    check_class_config(dagster_ray.RayRunLauncher.config_type(), launcher["config"])


# Kubernetes objects, against the classes of the official client


KINDS = {
    "ConfigMap": "V1ConfigMap",
    "Secret": "V1Secret",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "Deployment": "V1Deployment",
    "Service": "V1Service",
}


def check_fields(value: Any, model: str, where: str, *, snake_case: bool = False) -> None:
    """Every key is one that the class of the object has, down to the last object.

    Raises:
        AssertionError: naming the place.
    """
    from kubernetes import client

    if listed := re.fullmatch(r"list\[(.*)\]", model):
        assert isinstance(value, list), f"{where}: a list is expected"
        for number, item in enumerate(value):
            check_fields(item, listed[1], f"{where}[{number}]", snake_case=snake_case)
    elif hasattr(client, model) and hasattr(getattr(client, model), "attribute_map"):
        kind = getattr(client, model)
        names = {(inner if snake_case else outer): inner for inner, outer in kind.attribute_map.items()}
        assert isinstance(value, dict), f"{where}: an object is expected"
        for key, item in value.items():
            assert key in names, f"{where}.{key}: {model} has no such field"
            check_fields(item, kind.openapi_types[names[key]], f"{where}.{key}", snake_case=snake_case)
    elif model in ("str", "int", "bool"):
        expected = {"str": str, "int": int, "bool": bool}[model]
        assert isinstance(value, expected), f"{where}: {model} is expected, found {type(value).__name__}"


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text()):
            if "kind" in found:
                yield path.name, found


def test_every_kubernetes_object_has_only_fields_that_its_kind_has() -> None:
    pytest.importorskip("kubernetes", reason="comes with ensemble-assets[kubernetes]")
    found = list(objects())
    assert {content["kind"] for _, content in found} == set(KINDS)
    for name, content in found:
        assert {"apiVersion", "kind", "metadata"} <= set(content)
        check_fields(content, KINDS[content["kind"]], f"{name} {content['kind']}")


def test_the_field_check_finds_what_is_wrong() -> None:
    pytest.importorskip("kubernetes", reason="comes with ensemble-assets[kubernetes]")
    with pytest.raises(AssertionError, match="replica: V1DeploymentSpec has no such field"):
        check_fields({"spec": {"replica": 1}}, "V1Deployment", "x")
    with pytest.raises(AssertionError, match=r"ports\[0\].containerPort: int is expected"):
        check_fields([{"containerPort": "x"}], "list[V1ContainerPort]", "ports")


def test_what_the_objects_name_is_there() -> None:
    found = [content for _, content in objects()]
    by_kind = {kind: {c["metadata"]["name"] for c in found if c["kind"] == kind} for kind in KINDS}
    made_by_hand = {"dagster-instance"}  # kubectl create configmap, as settings.yaml says
    for content in (c for c in found if c["kind"] == "Deployment"):
        spec = content["spec"]["template"]["spec"]
        assert content["spec"]["selector"]["matchLabels"] == content["spec"]["template"]["metadata"]["labels"]
        assert spec["serviceAccountName"] in by_kind["ServiceAccount"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            for source in container["envFrom"]:
                assert source.get("configMapRef", {}).get("name") in {None, *by_kind["ConfigMap"]}
                assert source.get("secretRef", {}).get("name") in {None, *by_kind["Secret"]}
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name") in {None, *by_kind["ConfigMap"], *made_by_hand}
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in {None, *by_kind["PersistentVolumeClaim"]}
    launcher = load("kubernetes/dagster.yaml")["run_launcher"]["config"]
    assert set(launcher["env_config_maps"]) <= by_kind["ConfigMap"]
    assert set(launcher["env_secrets"]) <= by_kind["Secret"]
    server = load("kubernetes/workspace.yaml")["load_from"][0]["grpc_server"]
    [service] = [c for c in found if c["kind"] == "Service" and c["metadata"]["name"] == server["host"]]
    assert service["spec"]["ports"][0]["port"] == server["port"]


def test_settings_in_the_files_are_settings() -> None:
    known = {option.variable for option in options().values()}
    [settings] = [c for _, c in objects() if c["metadata"]["name"] == "ensemble-settings"]
    lines = (DEPLOY / "one-machine" / "ensemble.env").read_text().splitlines()
    named = {**settings["data"], **dict(line.split("=", 1) for line in lines if line)}
    assert {name for name in named if name.startswith("EMBEDDER_")} <= known
    resolve(environment=named, folder=ROOT / "docs")


def test_the_settings_file_of_the_ray_variant_is_accepted(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "ray" / "ensemble.yaml", tmp_path)
    values = flatten(resolve(environment={}, folder=tmp_path).settings)
    assert (values["cluster.engine"], values["cluster.shard_chunks"]) == ("ray", 50_000)


@pytest.mark.parametrize("name", ["dagster-daemon.service", "dagster-webserver.service"])
def test_the_units_are_whole(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "one-machine" / name)
    assert {"Unit", "Service", "Install"} <= set(unit.sections())
    service = unit["Service"]
    assert service["Restart"] == "always"
    assert service["EnvironmentFile"].endswith("ensemble.env")
    assert name.removesuffix(".service") in service["ExecStart"]
