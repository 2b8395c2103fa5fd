"""Layers win in the documented order, every value knows where it came from, and wrong values say what is accepted."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings import flatten, options, resolve

LAYERS = ("config file", ".env", "environment", "run")


def resolve_with(tmp_path: Path, given_layers: dict[str, str], key: str = "enable_rerank"):
    env_name = options()[key].env
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


def test_provenance_rows_have_the_contract_s_keys(tmp_path: Path) -> None:
    rows = resolve({"enable_rerank": "no"}, environment={}, folder=tmp_path).provenance(
        "enable_rerank", "models.sparse"
    )
    assert rows[0] == {"key": "enable_rerank", "value": False, "source": "run config enable_rerank", "layer": "run"}
    assert rows[1]["value"] == []


@pytest.mark.parametrize("key", sorted(options()))
def test_every_default_is_an_accepted_value_of_itself(key: str) -> None:
    option = options()[key]
    assert option.parse(option.default, "test") == option.default


def test_environment_names_are_unique() -> None:
    names = [option.env for option in options().values()]
    assert len(names) == len(set(names))


@given(st.data())
def test_numbers_outside_their_bounds_are_refused(data: st.DataObject) -> None:
    bounded = [o for o in options().values() if type(o.default) in (int, float) and o.low is not None]
    option = data.draw(st.sampled_from(bounded))
    value = data.draw(st.floats(min_value=-1e9, max_value=1e9, allow_nan=False))
    assert option.low is not None
    inside = value >= option.low and (option.high is None or value <= option.high)
    whole = isinstance(option.default, float) or value.is_integer()
    if inside and whole:
        assert option.parse(value, "test") == value
    else:
        with pytest.raises(SettingsError):
            option.parse(value, "test")


def test_flatten_has_every_option(tmp_path: Path) -> None:
    assert set(flatten(resolve(environment={}, folder=tmp_path).settings)) == set(options())
