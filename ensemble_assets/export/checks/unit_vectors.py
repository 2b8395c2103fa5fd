"""Gate ``vectors_finite_and_unit``: dense rows have an L2 norm of 1, and no number anywhere is not finite.

Vectors of single tokens are bytes and have any length but 0.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.read.bundle_reader import (
    EXPORT_AGAIN,
    Bundle,
    Point,
    open_array,
    open_vectors,
    token_vectors,
)
from ensemble_assets.export.write.names import UNIT_TOLERANCE
from ensemble_assets.export.write.token_vectors import TOKEN_FILES, token_problems

_BLOCK_BYTES = 16 << 20
"""Vectors held as float64 at a time."""

_TOKENS_AT_ONCE = 65_536
_MARKS = (b"NaN", b"Infinity", b"null")
_REMEDY = "Materialise the vectors again, then export"


class VectorsFiniteAndUnit:
    """Expect finite rows with norm 1 within 1e-3 in every dense array, and finite norms and vectors elsewhere."""

    def __init__(self, walk: Walk) -> None:
        self._bundle = walk.bundle
        self._findings = Findings("vectors_finite_and_unit")
        self._rows = 0

    def see(self, row: Row) -> None:
        """Judge the vectors of the point and of the sparse record."""
        self._rows = row.number + 1
        if row.stated is not None:
            return
        points, sparse = self._bundle.names.file("qdrant.jsonl"), self._bundle.names.file("sparse.jsonl")
        if row.point is not None and not row.stored_vectors and not _finite_lists(row.point):
            self._add(f"{points}, line {row.number + 1}: a dense vector holds a number")
        for file, record in ((points, row.payload), (sparse, row.sparse or {})):
            vector = record.get("sparse_vector")
            if isinstance(vector, dict) and not _finite(vector.get("values")):
                self._add(f"{file}, line {row.number + 1}: sparse_vector holds a value")

    def _add(self, finding: str) -> None:
        self._findings.add(f"{finding} that is not finite. {_REMEDY}")

    def result(self) -> GateResult:
        """Judge the arrays, and give the result."""
        bundle, findings = self._bundle, self._findings
        arrays = sorted(bundle.folder.glob(f"{bundle.names.prefix}_*embeddings.npy"))
        worst = 0.0
        for path in arrays:
            try:
                worst = max(worst, _check_array(bundle, path.name, findings))
            except ArtefactError as error:
                findings.add(str(error))
        for path in sorted(bundle.folder.glob(f"{bundle.names.prefix}_*norms.npy")):
            _check_norms(path, self._rows, findings)
        _check_tokens(bundle, self._rows, findings)
        if not (bundle.folder / bundle.names.vectors()).is_file():
            findings.add(f"{bundle.names.vectors()}: is missing. {EXPORT_AGAIN}")
        return findings.result(arrays=len(arrays), largest_norm_error=worst)


def _check_array(bundle: Bundle, name: str, findings: Findings) -> float:
    """Judge an array; gives the largest distance of a row's norm from 1."""
    array = open_vectors(bundle.folder / name)
    if array.dtype != np.float32:
        findings.add(f"{name}: expected float32, found {array.dtype}. {EXPORT_AGAIN}")
        return 0.0
    surplus = (bundle.folder / name).stat().st_size - getattr(array, "offset", 0) - array.nbytes
    if surplus and len(array):  # an array without rows is not mapped, so its offset is not known
        findings.add(f"{name}: has {surplus} bytes behind its numbers. {EXPORT_AGAIN}")
    worst = 0.0
    height = max(1, _BLOCK_BYTES // max(1, array.shape[1] * 8))
    for start in range(0, len(array), height):
        block = np.asarray(array[start : start + height], dtype=np.float64)
        error = np.abs(np.sqrt(np.einsum("ij,ij->i", block, block)) - 1.0)
        for row in np.flatnonzero(~(error <= UNIT_TOLERANCE)).tolist():
            finite = bool(np.isfinite(block[row]).all())
            state = f"has norm {float(np.linalg.norm(block[row])):.6g}" if finite else "is not finite"
            findings.add(
                f"{name}, row {start + row}: {state}; expected finite values and norm 1 within {UNIT_TOLERANCE}. "
                f"{_REMEDY}"
            )
        worst = max(worst, float(np.nanmax(error, initial=0.0)))
        drop_resident_pages(array)
    return worst if math.isfinite(worst) else 1e308


def _check_norms(path: Path, rows: int, findings: Findings) -> None:
    """Expect one finite norm of at least 0 for every row."""
    try:
        norms = open_array(path)
    except ArtefactError as error:
        findings.add(str(error))
        return
    if norms.shape != (rows,) or norms.dtype != np.float32:
        findings.add(
            f"{path.name}: expected {rows} numbers of float32, found {list(norms.shape)} {norms.dtype}. {EXPORT_AGAIN}"
        )
        return
    for row in np.flatnonzero(~(np.isfinite(norms) & (norms >= 0))).tolist():
        findings.add(f"{path.name}, row {row}: {norms[row]}; expected a finite number of at least 0. {_REMEDY}")


def _check_tokens(bundle: Bundle, rows: int, findings: Findings) -> None:
    """Expect whole numbers for the tokens of every row, and no token without a direction; nothing without the files."""
    try:
        tokens = token_vectors(bundle)
    except ArtefactError as error:
        findings.add(str(error))
        return
    if tokens is None:
        return
    for problem in token_problems(tokens, rows):
        findings.add(f"{problem}. {EXPORT_AGAIN}")
    for start in range(0, len(tokens.vectors), _TOKENS_AT_ONCE):
        block = tokens.vectors[start : start + _TOKENS_AT_ONCE]
        for row in np.flatnonzero(~block.any(axis=-1)).tolist():
            findings.add(f"{bundle.names.file(TOKEN_FILES[0])}, row {start + row}: has norm 0. {_REMEDY}")
        drop_resident_pages(tokens.vectors)


def _finite_lists(point: Point) -> bool:
    if not any(mark in point.vectors_text for mark in _MARKS) or point.vectors is None:
        return True  # row_alignment says so if they are no object
    return all(map(_finite, point.vectors.values()))


def _finite(values: Any) -> bool:
    try:
        return isinstance(values, list) and all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # no number, or one that no float holds
        return False
