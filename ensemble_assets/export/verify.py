"""The exporter's own last look at the files it wrote, before anybody sees them: counts, order, shapes.

It reads what is on disk, not what was meant to be there. The asset checks look deeper; this one cannot be skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.inputs import BundleInputs

_BLOCK_BYTES = 1 << 20


def require_whole(folder: Path, bundle: BundleInputs, files: tuple[str, ...]) -> None:
    """Check the v4.0 files in ``folder`` against ``bundle``.

    Raises:
        ContractError: naming the first file that does not have every chunk once and in order, with what was found.
    """
    names = bundle.names
    for name in files:
        if not (folder / name).is_file():
            raise ContractError(f"{name}: was to be written and is not there")
    for model in bundle.dense:
        name = names.vectors() if model is bundle.primary else names.vectors(model.slug)
        _require_array(folder / name, model.vectors.shape)
    _require_numbered_lines(folder / names.of("qdrant.jsonl"), bundle.count)
    if names.of("sparse.jsonl") in files:
        _require_numbered_lines(folder / names.of("sparse.jsonl"), bundle.count)
    _require_items(folder / names.of("metadata.json"), bundle.count, b"\n  }")
    _require_items(folder / names.of("texts.json"), bundle.count, b'\n  "')


def _require_array(path: Path, shape: tuple[int, ...]) -> None:
    found = np.load(path, mmap_mode="r", allow_pickle=False) if shape[0] else np.load(path, allow_pickle=False)
    if found.shape != shape or found.dtype != np.float32 or not found.flags.c_contiguous:
        raise ContractError(f"{path.name}: expected {list(shape)} float32, found {list(found.shape)} {found.dtype}")


def _require_numbered_lines(path: Path, count: int) -> None:
    number = -1
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if not line.startswith(b'{"id": %d, ' % number) or not line.endswith(b"}\n"):
                raise ContractError(f"{path.name}, line {number + 1}: expected the record of chunk row {number}")
    if number + 1 != count:
        raise ContractError(f"{path.name}: expected {count} lines, found {number + 1}")


def _require_items(path: Path, count: int, mark: bytes) -> None:
    """Count the items by what stands once in each: strings hold no line end, so ``mark`` is found nowhere else."""
    found, rest = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found += (rest + block).count(mark)
            rest = block[1 - len(mark) :]
    if found != count:
        raise ContractError(f"{path.name}: expected {count} items, found {found}")
