"""Write a whole bundle under its final name, all of it or nothing: v4.0 files, ranked lists and manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ensemble_assets.artefacts.array_files import save_array
from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.manifest import ManifestInputs, build_manifest, manifest_text
from ensemble_assets.export.write.names import BundleNames, collection_folder, names_by_manifest
from ensemble_assets.export.write.ranked_list_files import RUN_TAGS, write_rerank_jsonl, write_trec_run
from ensemble_assets.export.write.v40_files import Written, write_v40


@dataclass(frozen=True)
class RankedLists:
    """The lists that a run with an optional stage exports: ``QUERIES``, ``CANDIDATES`` and ``RERANKED`` frames."""

    queries: pl.DataFrame
    fused: pl.DataFrame
    reranked: pl.DataFrame | None = None


@dataclass(frozen=True)
class ExportedBundle:
    """A bundle that is in place: its sorted file names, the v4.0 files, and the files left out."""

    folder: Path
    files: tuple[str, ...]
    written: Written


def write_bundle(
    output: Path,
    bundle: BundleInputs,
    manifest: Callable[[Written], ManifestInputs],
    lists: RankedLists | None = None,
    judge: Callable[[Path], None] = lambda folder: None,
) -> ExportedBundle:
    """Write ``<output>/<collection>/``, replacing the bundle that is there in one step.

    Files of other people in that folder stay. Files of an earlier bundle go, even if this bundle lacks them: vectors of
    a companion that is gone, lists of a stage that is now off. An earlier bundle is one with the same prefix, or the
    one that the folder's manifest describes.

    ``manifest`` makes the manifest's inputs from the result of writing. ``lists`` are None when both stages are off,
    whose bundle is a v4.0 one. ``judge`` sees the finished folder before the swap; its ``ContractError`` keeps the old
    bundle.
    """
    names = bundle.names
    target = output / collection_folder(bundle.collection)
    replaced = [names, former] if (former := names_by_manifest(target)) else [names]
    with atomic_folder(target, keep=lambda name: not any(each.is_written(name) for each in replaced)) as folder:
        written = write_v40(folder, bundle)
        for name, array in bundle.token_arrays.items():
            save_array(folder / name, array)
        if lists is not None:
            write_trec_run(folder / names.file("fused.trec"), lists.fused, RUN_TAGS[0])
            for name, norms in bundle.norms.items():
                save_array(folder / name, norms)
        if lists is not None and lists.reranked is not None:
            write_rerank_jsonl(folder / names.file("rerank.jsonl"), lists.reranked, lists.queries)
            write_trec_run(folder / names.file("reranked.trec"), lists.reranked, RUN_TAGS[1])
        _write_manifest(folder, names, manifest_text(build_manifest(manifest(written))))
        judge(folder)
        files = tuple(sorted(file.name for file in folder.iterdir()))
    return ExportedBundle(target, files, written)


def renew_manifest(target: Path, names: BundleNames, text: str) -> None:
    """Replace the manifest of the bundle in ``target`` by ``text``; every other file stays.

    The folder is replaced in one step, so that no reader sees two manifests.
    """
    with atomic_folder(target, keep=lambda name: True) as folder:
        _write_manifest(folder, names, text)


def _write_manifest(folder: Path, names: BundleNames, text: str) -> None:
    for name in names.manifests:
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
