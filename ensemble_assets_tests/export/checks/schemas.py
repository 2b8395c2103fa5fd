"""Validates bundles with the published JSON Schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema", reason="jsonschema is a development dependency")

import jsonschema

from ensemble_assets_tests.export.bundles import PREFIX

SCHEMAS = Path(__file__).resolve().parents[3] / "docs" / "schema"


def validator(name: str, version: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}_{version}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(folder: Path, version: str) -> list[str]:
    """What the schemas of a version say about a bundle."""
    found = []
    files = {"point": "qdrant.jsonl", "sparse_record": "sparse.jsonl", "stats": "stats.json"}
    for name, content in files.items():
        path = folder / f"{PREFIX}_{content}"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines() if content.endswith("l") else [path.read_text()]
            for line in lines:
                found += [
                    f"{name}: {error.json_path}" for error in validator(name, version).iter_errors(json.loads(line))
                ]
    manifest = folder / "processing_summary.json"
    if manifest.is_file():
        errors = validator("manifest", version).iter_errors(json.loads(manifest.read_text(encoding="utf-8")))
        found += [f"manifest: {error.json_path}" for error in errors]
    return found
