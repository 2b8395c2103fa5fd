"""Gates ``legacy_projection`` and ``dense_parity``: without what v4.1 adds, a bundle is the v4.0 bundle, byte for byte.

The v4.0 bundle is written anew from the chunks and vectors where those are given, or taken from another bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ensemble_assets.core.errors import ArtefactError, ContractError
from ensemble_assets.export.encode import compact, float_rows
from ensemble_assets.export.gates.difference import CLOCK_KEYS, equal_bytes, first_difference
from ensemble_assets.export.gates.reading import EXPORT_AGAIN, Bundle, open_bundle, open_vectors, points, read_object
from ensemble_assets.export.gates.result import Findings, GateResult
from ensemble_assets.export.inputs import BundleInputs
from ensemble_assets.export.projection import project_to_v40
from ensemble_assets.export.v40 import write_v40

_RECORD_FILES = ("qdrant.jsonl", "metadata.json", "texts.json", "stats.json", "sparse.jsonl")
_NO_ORIGINAL = "neither the chunks that the bundle was made of nor another bundle were given"


class Original:
    """The v4.0 bundle that a bundle is held against, made when it is first needed.

    Args:
        bundle: the bundle to check.
        scratch: an empty folder; room for two v4.0 bundles.
        inputs: what the bundle was made of.
        against: another bundle of the same chunks and vectors; unused with ``inputs``.
    """

    def __init__(
        self, bundle: Bundle, scratch: Path, inputs: BundleInputs | None = None, against: Path | None = None
    ) -> None:
        self.bundle = bundle
        self.inputs = inputs
        self.against = against
        self._scratch = scratch

    @property
    def ignored(self) -> frozenset[str]:
        """Keys that may differ: the clock, where the original is another run's."""
        return CLOCK_KEYS if self.inputs is None and self.against is not None else frozenset()

    @cached_property
    def expected(self) -> Path | None:
        """Folder of the v4.0 bundle; None where there is nothing to make it of.

        Raises:
            ArtefactError: if the other bundle is none.
            ContractError: if the chunks and vectors do not fit together.
        """
        target = self._scratch / "expected"
        if self.inputs is not None:
            target.mkdir()
            clock = str(read_object(self.bundle.path("stats.json")).get("export_timestamp"))
            indexed = self.bundle.path("index.faiss").is_file()
            write_v40(target, replace(self.inputs, sparse=None, clock=clock, flat_index=indexed))
        elif self.against is not None:
            project_to_v40(self.against, target)
        else:
            return None
        return target

    @cached_property
    def projected(self) -> Path:
        """Folder of the bundle's projection.

        Raises:
            ArtefactError: if the bundle is not laid out as bundles are.
        """
        project_to_v40(self.bundle.folder, self._scratch / "projected")
        return self._scratch / "projected"


def legacy_projection(original: Original) -> GateResult:
    """Dropping what v4.1 adds gives the v4.0 bundle: points, metadata, texts, sparse records and statistics."""
    found = Findings("legacy_projection")
    compared = 0
    try:
        expected = original.expected
        if expected is None:
            found.note(f"{_NO_ORIGINAL}: checked that v4.0 files survive the projection as they are")
            expected = original.projected if _is_plain(original.bundle) else None
            if expected is None:
                return found.result(files_compared=0)
            pairs = _pairs(original.bundle.folder, expected, original.bundle)
        else:
            pairs = _pairs(original.projected, expected, original.bundle)
        for sentence in _differences(pairs, original.ignored):
            compared += 1
            if sentence:
                found.add(f"{sentence}. {EXPORT_AGAIN}, or repair the writer if a fresh export differs too")
    except (ArtefactError, ContractError) as error:
        found.add(str(error))
    return found.result(files_compared=compared)


def dense_parity(original: Original) -> GateResult:
    """Dense-only content is byte-identical to v4.0: all files with both stages off, else those without sparse vectors.

    Vectors in the points are compared as text with what v4.0 writes of the arrays.
    """
    found = Findings("dense_parity")
    bundle, compared = original.bundle, 0
    try:
        compared = _compare_dense_files(original, found)
        for sentence in _vector_text_differences(bundle, original.inputs):
            found.add(f"{sentence}. {EXPORT_AGAIN}")
    except (ArtefactError, ContractError) as error:
        found.add(str(error))
    return found.result(files_compared=compared)


def _compare_dense_files(original: Original, found: Findings) -> int:
    expected = original.expected
    if expected is None:
        found.note(f"{_NO_ORIGINAL}: compared the vectors of the points with the arrays only")
        return 0
    bundle = original.bundle
    other = open_bundle(expected).names
    everything = not (bundle.sparse_on or bundle.rerank_on) and original.inputs is not None
    names = sorted(file.name.removeprefix(other.prefix) for file in expected.iterdir())
    dense = [name for name in names if name.endswith("_embeddings.npy") or name in {"_index.faiss", "_texts.json"}]
    for name in names if everything else dense:
        file = bundle.folder / f"{bundle.names.prefix}{name}"
        if not file.is_file():
            found.add(f"{file.name}: is missing, v4.0 writes it. {EXPORT_AGAIN}")
        elif not equal_bytes(file, expected / f"{other.prefix}{name}"):
            found.add(f"{first_difference(file, expected / f'{other.prefix}{name}')}. {EXPORT_AGAIN}")
    return len(names if everything else dense)


def _vector_text_differences(bundle: Bundle, inputs: BundleInputs | None) -> Iterator[str]:
    first = next(points(bundle), None)
    if first is None:
        return
    try:
        slugs = first.vector_names
        files = [bundle.names.vectors(), *map(bundle.names.vectors, slugs[1:])]
        given = {model.slug: model.vectors for model in inputs.dense} if inputs else {}
        arrays = [given.get(s, open_vectors(bundle.folder / f)) for s, f in zip(slugs, files, strict=True)]
        written = [float_rows(np.asarray(array), slug) for array, slug in zip(arrays, slugs, strict=True)]
        lists_of_rows: Iterator[tuple[str, ...]] = zip(*written, strict=True)
        for row, (point, lists) in enumerate(zip_longest(points(bundle), lists_of_rows)):
            if point is None or lists is None:
                yield f"{bundle.names.of('qdrant.jsonl')}: at row {row} the points or the arrays end"
                return
            expected = ", ".join(f"{compact(slug)}: {text}" for slug, text in zip(slugs, lists, strict=True))
            if point.vectors != f"{{{expected}}}":
                yield f"{bundle.names.of('qdrant.jsonl')}, line {row + 1}: vectors are not written as v4.0 writes them"
    except (ContractError, ValueError) as error:
        yield f"{bundle.names.of('qdrant.jsonl')}: {error if isinstance(error, ContractError) else 'broken vectors'}"


def _is_plain(bundle: Bundle) -> bool:
    """Whether no stage changed a v4.0 file, so that the projection must change nothing."""
    return not bundle.sparse_on


def _pairs(found: Path, expected: Path, bundle: Bundle) -> Iterator[tuple[Path, Path]]:
    other = open_bundle(expected).names
    for content in _RECORD_FILES:
        yield found / bundle.names.of(content), expected / other.of(content)


def _differences(pairs: Iterator[tuple[Path, Path]], ignored: frozenset[str]) -> Iterator[str | None]:
    """One entry a file: where it differs, or None."""
    for found, expected in pairs:
        if not found.is_file() and not expected.is_file():
            continue
        if not found.is_file() or not expected.is_file():
            yield f"{found.name}: {'is missing' if not found.is_file() else 'v4.0 does not write it'}"
        else:
            yield first_difference(found, expected, ignored)
