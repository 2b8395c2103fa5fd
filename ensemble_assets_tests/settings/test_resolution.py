"""Layers win in the documented order, every value knows where it came from, and wrong values say what is accepted."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.registry import PROFILES
from ensemble_assets.settings import Settings, flatten, options, resolve
from ensemble_assets.settings.sources import dotted, nested

LAYERS = ("config file", ".env", "environment", "run")


def resolve_with(tmp_path: Path, given_layers: dict[str, str], key: str = "enable_rerank"):
    env_name = options()[key].variable
    environment = {env_name: given_layers["environment"]} if "environment" in given_layers else {}
    if "config file" in given_layers:
        (tmp_path / "ensemble.yaml").write_text(f"{key}: {given_layers['config file']}\n")
    if ".env" in given_layers:
        (tmp_path / ".env").write_text(f"{env_name}={given_layers['.env']}\n")
    overrides = {key: given_layers["run"]} if "run" in given_layers else {}
    return resolve(overrides, environment=environment, folder=tmp_path)


def test_sparse_and_rerank_are_on_by_default(tmp_path: Path) -> None:
    resolved = resolve(environment={}, folder=tmp_path)
    assert resolved.settings.enable_sparse is True
    assert resolved.settings.enable_rerank is True
    assert resolved.origins["enable_rerank"].layer == "default"


@pytest.mark.parametrize(("weaker", "stronger"), list(itertools.combinations(LAYERS, 2)))
def test_the_stronger_layer_wins_and_is_named(tmp_path: Path, weaker: str, stronger: str) -> None:
    resolved = resolve_with(tmp_path, {weaker: "true", stronger: "false"})
    assert resolved.settings.enable_rerank is False
    assert resolved.origins["enable_rerank"].layer == stronger


@pytest.mark.parametrize("word", ["1", "true", "yes", "on", "TRUE", " Yes "])
def test_words_for_on(tmp_path: Path, word: str) -> None:
    assert resolve({"enable_sparse": word}, environment={}, folder=tmp_path).settings.enable_sparse is True


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "Off"])
def test_words_for_off(tmp_path: Path, word: str) -> None:
    assert resolve({"enable_sparse": word}, environment={}, folder=tmp_path).settings.enable_sparse is False


def test_the_legacy_environment_names_work(tmp_path: Path) -> None:
    environment = {
        "EMBEDDER_ENABLE_RERANK": "off",
        "EMBEDDER_ENABLE_SPARSE": "no",
        "EMBEDDER_SPARSE_MODELS": "splade-tiny, splade-pp-en-v1",
        "EMBEDDER_METRICS_ENABLED": "0",
        "EMBEDDER_METRICS_NAMESPACE": "search",
    }
    settings = resolve(environment=environment, folder=tmp_path).settings
    assert (settings.enable_rerank, settings.enable_sparse) == (False, False)
    assert settings.models.sparse == ("splade-tiny", "splade-pp-en-v1")
    assert (settings.metrics.enabled, settings.metrics.namespace) == (False, "search")


def test_a_wrong_value_names_variable_value_and_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(environment={"EMBEDDER_ENABLE_RERANK": "maybe"}, folder=tmp_path)
    for part in ("EMBEDDER_ENABLE_RERANK", "'maybe'", "1/true/yes/on or 0/false/no/off"):
        assert part in str(caught.value)


def test_an_unknown_option_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Did you mean 'rerank\.depth'"):
        resolve({"rerank.detph": 5}, environment={}, folder=tmp_path)


def test_a_broken_config_file_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text("enable_rerank: true\nrerank: [1\n")
    with pytest.raises(SettingsError, match=r"ensemble\.yaml, line 3"):
        resolve(environment={}, folder=tmp_path)


def test_a_named_config_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"EMBEDDER_CONFIG names .*missing\.yaml"):
        resolve(environment={"EMBEDDER_CONFIG": str(tmp_path / "missing.yaml")}, folder=tmp_path)


def test_nested_sections_of_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text("rerank:\n  depth: 7\nmodels:\n  ensemble: [a, b]\n")
    settings = resolve(environment={}, folder=tmp_path).settings
    assert settings.rerank.depth == 7
    assert settings.models.ensemble == ("a", "b")


def test_a_section_with_nothing_under_it_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text("paths:\n  # output_dir: elsewhere\nrerank:\n  depth: 7\n")
    assert resolve(environment={}, folder=tmp_path).settings.rerank.depth == 7


def test_provenance_rows_have_the_contract_s_keys(tmp_path: Path) -> None:
    rows = resolve({"enable_rerank": "no"}, environment={}, folder=tmp_path).provenance(
        "enable_rerank", "models.sparse"
    )
    assert rows[0] == {"key": "enable_rerank", "value": False, "source": "run config enable_rerank", "layer": "run"}
    assert rows[1]["value"] == []


def test_every_layer_that_spoke_has_a_row_and_the_last_one_counts(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text("enable_rerank: false\n")
    variables = {"EMBEDDER_ENABLE_RERANK": "on"}
    resolved = resolve({"enable_rerank": "no"}, environment=variables, folder=tmp_path)
    rows = resolved.with_overrides({"enable_rerank": True}, {"enable_rerank": "--enable-rerank"}).provenance(
        "enable_rerank", "enable_sparse"
    )
    assert [(row["layer"], row["source"], row["value"]) for row in rows[:-1]] == [
        ("config file", "ensemble.yaml enable_rerank", False),
        ("environment", "environment variable EMBEDDER_ENABLE_RERANK", True),
        ("run", "run config enable_rerank", False),
        ("run", "--enable-rerank", True),
    ]
    assert [row["key"] for row in rows] == ["enable_rerank"] * 4 + ["enable_sparse"]


@pytest.mark.parametrize("key", sorted(options()))
def test_every_default_is_an_accepted_value_of_itself(key: str) -> None:
    default = options()[key].field.default
    assert flatten(resolve({key: default}, environment={}, folder=Path("/nowhere")).settings)[key] == default


def test_environment_names_are_unique() -> None:
    names = [option.variable for option in options().values()]
    assert len(names) == len(set(names))


@given(st.data())
def test_numbers_outside_their_bounds_are_refused(data: st.DataObject) -> None:
    numbers = [option for option in options().values() if type(option.field.default) in (int, float)]
    option = data.draw(st.sampled_from(numbers))
    value = data.draw(st.floats(min_value=-1e9, max_value=1e9, allow_nan=False) | st.integers(-100, 2_000_000))
    bounds = re.findall(r"at (least|most) (-?[\d,.]+)", option.accepted)
    assert bounds
    limits = {word: float(bound.replace(",", "")) for word, bound in bounds}
    inside = limits.get("least", -math.inf) <= value <= limits.get("most", math.inf)
    whole = isinstance(option.field.default, float) or float(value).is_integer()
    if inside and whole:
        settings = resolve({option.key: value}, environment={}, folder=Path("/nowhere")).settings
        assert flatten(settings)[option.key] == value
    else:
        with pytest.raises(SettingsError, match=re.escape(option.accepted)):
            resolve({option.key: value}, environment={}, folder=Path("/nowhere"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rerank.depth", True),
        ("rerank.depth", "5.5"),
        ("rerank.depth", None),
        ("device.ceiling_gb", "nan"),
        ("device.ceiling_gb", "inf"),
        ("device.ceiling_gb", False),
        ("enable_sparse", 2),
        ("export.prefix", 4),
        ("export.prefix", ""),
        ("export.prefix", "a b"),
        ("export.prefix", "../x"),
        ("models.ensemble", ["minilm", 4]),
        ("models.ensemble", {"minilm": 1}),
        ("models.profile", "best"),
    ],
)
def test_values_of_another_type_are_refused_with_source_value_and_accepted_ones(key: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({key: value}, environment={}, folder=Path("/nowhere"), override_sources={key: "--flag"})
    if not isinstance(value, dict):
        wanted = f"--flag: {value!r} is not accepted for {key}; expected {options()[key].accepted}"
        assert str(caught.value) == wanted


def test_a_wrong_value_is_refused_even_where_a_stronger_layer_sets_another(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text("rerank:\n  depth: none\n")
    with pytest.raises(SettingsError, match=r"ensemble\.yaml rerank\.depth: 'none' is not accepted"):
        resolve({"rerank.depth": 5}, environment={}, folder=tmp_path)


def test_names_are_split_at_commas_and_empty_ones_dropped() -> None:
    for value in (" a , b,, ", ["a", " b ", ""], ("a", "b")):
        settings = resolve({"models.sparse": value}, environment={}, folder=Path("/nowhere")).settings
        assert settings.models.sparse == ("a", "b")


def test_dotted_keys_and_sections_are_two_forms_of_the_same_values() -> None:
    flat = flatten(Settings())
    assert dotted(nested(flat)) == flat
    assert Settings.model_validate(nested(flat)) == Settings()


def test_the_profiles_are_those_of_the_registry() -> None:
    assert options()["models.profile"].accepted == "one of " + ", ".join((*PROFILES, "custom"))


def test_sizes_in_bytes() -> None:
    device = resolve({"device.ceiling_gb": 6.5, "device.host_budget_gb": "0.25"}, environment={}).settings.device
    assert (device.ceiling_bytes, device.host_budget_gb) == (6_500_000_000, 0.25)


def test_secrets_of_the_environment_are_not_shown(tmp_path: Path) -> None:
    resolved = resolve(environment={"QDRANT_API_KEY": "s3cret"}, folder=tmp_path)
    assert resolved.environment["QDRANT_API_KEY"] == "s3cret"
    assert "s3cret" not in repr(resolved)


def test_flatten_has_every_option(tmp_path: Path) -> None:
    assert set(flatten(resolve(environment={}, folder=tmp_path).settings)) == set(options())
