"""Gate ``dense_twin``: the dense vectors of a bundle are those of the collection's dense-only bundle.

The two come from runs that computed everything themselves, so batches, and with them the last bits, may differ; v4.0's
bytes are ``dense_parity``'s part. What is not comparable (other chunks, other models) is noted and passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.file_difference import equal_bytes
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.read.bundle_reader import Bundle, open_bundle
from ensemble_assets.export.write.names import MANIFEST_NAME

LEAST_COSINE = 0.9995
"""Two bfloat16 runs with other batches stay well above this; another model, pooling or text is far below."""

_BLOCK = 8192
_NONE = "there is no dense-only bundle of this collection to compare with; the job dense_only writes one"
_RUN_AGAIN = "Run dense_only and retrieval_bundle again with encoding.reuse off"


def dense_twin(bundle: Bundle, twin: Path | None) -> GateResult:
    """The verdict.

    Args:
        bundle: the bundle to judge.
        twin: folder of the dense-only bundle; None or an absent folder where there is none.
    """
    found, rows, least, identical = Findings("dense_twin"), 0, 1.0, 0
    if twin is None or not (twin / MANIFEST_NAME).is_file():
        found.note(_NONE)
        return found.result(rows=0, arrays=0)
    try:
        other = open_bundle(twin)
        problem = _not_comparable(bundle, other)
    except ArtefactError as error:
        problem = f"the dense-only bundle cannot be read: {error}"
    if problem:
        found.note(problem)
        return found.result(rows=0, arrays=0)
    arrays = _arrays(bundle)
    for slug, path in arrays.items():
        expected = _arrays(other)[slug]
        if absent := [one for one in (path, expected) if not one.is_file()]:
            found.add(f"{absent[0].parent.name}/{absent[0].name}: is missing. {_RUN_AGAIN}")
            continue
        if equal_bytes(path, expected):
            identical += 1
            rows = len(np.load(path, mmap_mode="r"))
            continue
        rows, cosine, row = _farthest(np.load(path, mmap_mode="r"), np.load(expected, mmap_mode="r"))
        least = min(least, cosine)
        if row < 0:
            found.add(f"{path.name}: has another shape than in the dense-only bundle. {_RUN_AGAIN}")
        elif cosine < LEAST_COSINE:
            found.add(
                f"{path.name}, row {row}: its cosine with the dense-only run's vector is {cosine:.6f}, expected at "
                f"least {LEAST_COSINE}. {_RUN_AGAIN}"
            )
    return found.result(rows=rows, arrays=len(arrays), identical_arrays=identical, least_cosine=round(least, 8))


def _not_comparable(bundle: Bundle, other: Bundle) -> str | None:
    """Why nothing can be said; None if the two are about the same."""
    texts = [one.path("texts.json") for one in (bundle, other)]
    if not all(path.is_file() for path in texts) or not equal_bytes(*texts):
        return "the dense-only bundle is of other chunks; run dense_only again to compare"
    if _models(bundle) != _models(other):
        return "the dense-only bundle is of other models; run dense_only again to compare"
    return None


def _models(bundle: Bundle) -> list[tuple[Any, Any]]:
    run = bundle.manifest.get("dense_run")
    models = run.get("models") if isinstance(run, dict) else None
    found = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    return [(one.get("slug"), one.get("fingerprint")) for one in found]


def _arrays(bundle: Bundle) -> dict[str, Path]:
    """Files of dense vectors by model; the first model is the primary one."""
    slugs = [str(slug) for slug, _ in _models(bundle)]
    names = [bundle.names.vectors(slug if number else None) for number, slug in enumerate(slugs)]
    return {slug: bundle.folder / name for slug, name in zip(slugs, names, strict=True)}


def _farthest(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[int, float, int]:
    """Number of rows, the least cosine and its row; the row is -1 where shapes differ.

    Args:
        vectors: ``[rows, width] float32``.
        expected: the same.
    """
    if vectors.shape != expected.shape:
        return len(vectors), -1.0, -1
    least, at = 1.0, 0
    for start in range(0, len(vectors), _BLOCK):
        left = np.asarray(vectors[start : start + _BLOCK], np.float64)
        right = np.asarray(expected[start : start + _BLOCK], np.float64)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = np.divide((left * right).sum(axis=1), lengths, out=np.full(len(left), -1.0), where=lengths > 0)
        cosines = np.nan_to_num(cosines, nan=-1.0)
        row = int(cosines.argmin())
        if cosines[row] < least:
            least, at = float(cosines[row]), start + row
    return len(vectors), least, at
