"""Read models and a profile from a YAML file, for profile ``custom``, and check them field by field.

Example::

    models:
      - slug: my-encoder
        kind: dense
        source: {repository: owner/name, revision: main}   # or {path: models/my-encoder}
        hf_model_id: owner/name
        dimension: 768
        max_tokens: 512
        pooling: mean
        licence: MIT
    profile:
      dense: [my-encoder]
      sparse: [splade-tiny]
      rerank: ensemble-reranker-tiny
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.registry import MODELS, Profile, model_spec
from ensemble_assets.models.spec import POOLINGS, FolderSource, HubSource, ModelKind, ModelSpec, Source

_SLUG = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")
_NUMBERS: Mapping[str, tuple[bool, float, float]] = {
    "dimension": (True, 0, 10_000_000),
    "max_tokens": (True, 1, 10_000_000),
    "windows": (True, 1, 64),
    "weight": (False, 0, 1e9),
    "share": (False, 0, 1),
    "share_beside_late": (False, 0, 1),
    "late_share": (False, 0, 1),
}
"""Numeric fields: whether only whole numbers are accepted, smallest and largest value."""
_FIELDS = {field.name: field for field in dataclasses.fields(ModelSpec)}


@dataclass(frozen=True)
class ModelCatalogue:
    """The models and the profile of a models file. Models of the registry can be named too."""

    models: Mapping[str, ModelSpec]
    profile: Profile

    def spec(self, slug: str, kind: ModelKind) -> ModelSpec:
        """Return the model ``slug`` of the file, else of the registry.

        Raises:
            SettingsError: if there is none of that kind.
        """
        own = self.models.get(slug)
        return own if own is not None and own.kind == kind else model_spec(slug, kind)


def read_catalogue(path: Path) -> ModelCatalogue:
    """Read a models file.

    Raises:
        SettingsError: naming file, model and field, the expected value and the remedy.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingsError(f"models.file: {path} cannot be read. Correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"models.file: {path.name} is not valid YAML in UTF-8. Correct the file") from None
    if not isinstance(content, dict) or not isinstance(content.get("profile"), dict):
        raise SettingsError(f"{path.name}: expected a mapping with `models` (a list) and `profile`")
    specs = [_spec(path.name, number, item) for number, item in enumerate(content.get("models") or [], start=1)]
    models = {spec.slug: spec for spec in specs}
    if len(models) != len(specs):
        raise SettingsError(f"{path.name}: two models have the same slug. Slugs must be unique")
    catalogue = ModelCatalogue(models, _profile(path.name, content["profile"]))
    profile = catalogue.profile
    for kind, slugs in (("dense", profile.dense), ("sparse", profile.sparse), ("rerank", (profile.rerank,))):
        for slug in slugs:
            catalogue.spec(slug, kind)  # type: ignore[arg-type]
    return catalogue


def _profile(file: str, chosen: Mapping[str, Any]) -> Profile:
    dense, sparse, rerank = chosen.get("dense"), chosen.get("sparse") or [], chosen.get("rerank")
    if not (isinstance(dense, list) and dense and isinstance(sparse, list) and isinstance(rerank, str)):
        raise SettingsError(
            f"{file}, profile: expected `dense` (a list, the first is the primary model), `sparse` (a list) and "
            "`rerank` (one model)"
        )
    return Profile("custom", tuple(map(str, dense)), tuple(map(str, sparse)), rerank)


def _spec(file: str, number: int, item: Any) -> ModelSpec:
    where = f"{file}, model {number}"
    if not isinstance(item, dict):
        raise SettingsError(f"{where}: expected a mapping of fields")
    unknown = sorted(set(item) - set(_FIELDS))
    required = [name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in item]
    if unknown or missing:
        problem = f"unknown field {unknown[0]!r}" if unknown else f"field {missing[0]!r} is missing"
        raise SettingsError(f"{where}: {problem}; fields are {', '.join(_FIELDS)}")
    _check_words(where, item)
    _check_numbers(where, item)
    if not _SLUG.fullmatch(str(item["slug"])):
        raise SettingsError(f"{where}: slug {item['slug']!r} must be lower case letters, digits, '-' and '.'")
    if item["slug"] in MODELS:
        raise SettingsError(f"{where}: slug {item['slug']!r} is a registered model's. Choose another one")
    spec = ModelSpec(**{**item, "source": _source(where, item["source"])})
    if spec.trust_remote_code and not (isinstance(spec.source, HubSource) and spec.source.is_pinned):
        raise SettingsError(f"{where}: trust_remote_code needs source.revision as a full 40-digit commit hash")
    return spec


def _check_words(where: str, item: Mapping[str, Any]) -> None:
    poolings = next((words for kind, words in POOLINGS.items() if kind == item["kind"]), ())
    for name, accepted in (("kind", tuple(POOLINGS)), ("pooling", poolings)):
        if item[name] not in accepted:
            raise SettingsError(f"{where}: {name} is {item[name]!r}, expected one of {', '.join(accepted)}")


def _check_numbers(where: str, item: Mapping[str, Any]) -> None:
    for name, (whole, low, high) in _NUMBERS.items():
        number: Any = item.get(name, low)
        fits = isinstance(number, int if whole else (int, float)) and not isinstance(number, bool)
        if not (fits and low <= number <= high):
            words = "a whole number" if whole else "a number"
            raise SettingsError(f"{where}: {name} is {number!r}, expected {words} from {low:g} to {high:g}")


def _source(where: str, item: Any) -> Source:
    if isinstance(item, dict) and isinstance(item.get("path"), str):
        return FolderSource(item["path"])
    if isinstance(item, dict) and isinstance(item.get("repository"), str):
        return HubSource(item["repository"], str(item.get("revision", "main")))
    raise SettingsError(f"{where}: source must have `path` (a folder) or `repository` (a Hugging Face id)")
