"""Gate ``vectors_finite_and_unit``: dense rows have an L2 norm of 1, and no number anywhere is not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.core.errors import ArtefactError
from ensemble_assets.export.encode import UNIT_TOLERANCE, release
from ensemble_assets.export.gates.reading import EXPORT_AGAIN, Bundle, open_vectors, points, records
from ensemble_assets.export.gates.result import Findings, GateResult

_BLOCK_BYTES = 16 << 20
_MARKS = ("NaN", "Infinity", "null")
_REMEDY = "Materialise the vectors again, then export"


def vectors_finite_and_unit(bundle: Bundle) -> GateResult:
    """Every row of every dense array is finite with norm 1 within 1e-3; the vectors in the JSON files are finite."""
    found = Findings("vectors_finite_and_unit")
    arrays = sorted(bundle.folder.glob(f"{bundle.names.prefix}_*embeddings.npy"))
    worst = 0.0
    for path in arrays:
        try:
            worst = max(worst, _check_array(bundle, path.name, found))
        except ArtefactError as error:
            found.add(str(error))
    if not (bundle.folder / bundle.names.vectors()).is_file():
        found.add(f"{bundle.names.vectors()}: is missing. {EXPORT_AGAIN}")
    _check_points(bundle, found)
    _check_sparse(bundle, found)
    return found.result(arrays=len(arrays), largest_norm_error=worst)


def _check_array(bundle: Bundle, name: str, found: Findings) -> float:
    """The largest distance of a row's norm from 1."""
    array = open_vectors(bundle.folder / name)
    if array.ndim != 2 or array.dtype != np.float32:
        found.add(
            f"{name}: expected two dimensions of float32, found {list(array.shape)} {array.dtype}. {EXPORT_AGAIN}"
        )
        return 0.0
    worst = 0.0
    height = max(1, _BLOCK_BYTES // max(1, array.shape[1] * 8))
    for start in range(0, len(array), height):
        block = np.asarray(array[start : start + height], dtype=np.float64)
        error = np.abs(np.sqrt(np.einsum("ij,ij->i", block, block)) - 1.0)
        for row in np.flatnonzero(~(error <= UNIT_TOLERANCE)).tolist():
            kind = _kind_of(block[row])
            found.add(
                f"{name}, row {start + row}: {kind}; expected finite values and norm 1 within {UNIT_TOLERANCE}. "
                f"{_REMEDY}"
            )
        worst = max(worst, float(np.nanmax(error, initial=0.0)))
        release(array)
    return worst if math.isfinite(worst) else 1e308


def _kind_of(row: NDArray[np.float64]) -> str:
    return f"has norm {float(np.linalg.norm(row)):.6g}" if np.isfinite(row).all() else "is not finite"


def _check_points(bundle: Bundle, found: Findings) -> None:
    for row, point in enumerate(points(bundle)):
        where = f"{bundle.names.of('qdrant.jsonl')}, line {row + 1}"
        if point is None:
            continue
        if any(mark in point.vectors for mark in _MARKS) and not _finite_lists(point.parsed_vectors()):
            found.add(f"{where}: a dense vector holds a number that is not finite. {_REMEDY}")
        vector = (point.payload or {}).get("sparse_vector")
        if isinstance(vector, dict) and not _finite(vector.get("values")):
            found.add(f"{where}: sparse_vector holds a value that is not finite. {_REMEDY}")


def _check_sparse(bundle: Bundle, found: Findings) -> None:
    path = bundle.path("sparse.jsonl")
    for number, record in enumerate(records(path) if path.is_file() else (), start=1):
        vector = (record or {}).get("sparse_vector")
        if isinstance(vector, dict) and not _finite(vector.get("values")):
            found.add(f"{path.name}, line {number}: a value is not finite. {_REMEDY}")


def _finite_lists(vectors: dict[str, Any]) -> bool:
    return all(_finite(values) for values in vectors.values())


def _finite(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
