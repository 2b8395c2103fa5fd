"""Fill the upload script that every bundle carries: a template of the package with the bundle's facts."""

from __future__ import annotations

import json
import re
from importlib import resources

from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.names import target_collection

_TEMPLATE = "upload_script.py.txt"
_PLACEHOLDER = re.compile("@([A-Z_]+)@")


def upload_script(bundle: BundleInputs) -> str:
    """Make the text of ``<prefix>_upload_script.py``. It holds names only: no path, address, secret or time."""
    template = resources.files("ensemble_assets.export.write").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    facts = {
        "COLLECTION": target_collection(bundle.collection, bundle.primary.slug),
        "POINTS_FILE": bundle.names.file("qdrant.jsonl"),
        "VECTORS": {model.slug: int(model.vectors.shape[1]) for model in bundle.dense},
    }
    return _PLACEHOLDER.sub(lambda match: json.dumps(facts[match[1]], ensure_ascii=False), template)
