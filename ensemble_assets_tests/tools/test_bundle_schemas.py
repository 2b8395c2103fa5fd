"""The published schemas are those that the key tables give."""

from __future__ import annotations

import json

from ensemble_assets.export.checks.key_tables import PAYLOAD_TAIL, STATS
from ensemble_assets_tests.tools.bundle_schemas import FOLDER, schemas, text


def test_every_file_is_what_the_tables_give() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert files == {name: text(schema) for name, schema in schemas().items()}, (
        "write them anew: python -m ensemble_assets_tests.tools.bundle_schemas"
    )


def test_every_key_of_the_tables_is_in_the_schemas() -> None:
    for version in ("v4.0", "v4.1"):
        point = json.loads((FOLDER / f"point_{version}.schema.json").read_text(encoding="utf-8"))
        stats = json.loads((FOLDER / f"stats_{version}.schema.json").read_text(encoding="utf-8"))
        assert list(point["properties"]["payload"]["properties"]) == [key.name for key in PAYLOAD_TAIL]
        assert list(stats["properties"]) == [key.name for key in STATS]
