"""Describe the pipeline once: its stages, what each is made of, and the ranked lists that it makes.

Everything that names a stage, an asset or a list derives it from these two tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: short name, in spans, metrics, the manifest and the command line.
        asset: name of its Dagster asset and of its artefact.
        inputs: names of the stages whose artefacts it reads.
        doing: words for its work while no rows can be counted.
        timed: whether it counts in the latency budget and has a span ``rag.<name>``.
        toggle: settings key that switches it off, or "".
        main_frame: name of the frame that stands for the artefact in Dagster, or "".
        in_bundle: whether the export reads it; a stale one then makes the bundle stale.
    """

    name: str
    asset: str
    inputs: tuple[str, ...] = ()
    doing: str = "preparing models and texts"
    timed: bool = False
    uses_model: bool = False
    toggle: str = ""
    main_frame: str = ""
    in_bundle: bool = True
    holds_text: bool = False


PIPELINE: tuple[Stage, ...] = (
    Stage("chunks", "chunks", doing="finding models, reading files", main_frame="chunks", holds_text=True),
    Stage("queries", "queries", ("chunks",), "reading queries", main_frame="queries", holds_text=True),
    Stage("dense", "dense_embeddings", ("chunks", "queries"), timed=True, uses_model=True),
    Stage("sparse", "sparse_vectors", ("chunks", "queries"), timed=True, uses_model=True, toggle="enable_sparse"),
    Stage(
        "fusion",
        "fused_candidates",
        ("chunks", "queries", "dense", "sparse"),
        "searching",
        timed=True,
        main_frame="candidates",
    ),
    Stage(
        "rerank",
        "reranked_candidates",
        ("chunks", "queries", "fusion"),
        timed=True,
        uses_model=True,
        toggle="enable_rerank",
        main_frame="reranked",
    ),
    Stage("evaluation", "evaluation", ("chunks", "queries", "fusion", "rerank"), "measuring", in_bundle=False),
    Stage(
        "export",
        "export_bundle",
        ("chunks", "queries", "dense", "sparse", "fusion", "rerank"),
        "writing and checking the bundle",
        timed=True,
    ),
)
"""The stages in the order in which they run."""

STAGE: dict[str, Stage] = {stage.name: stage for stage in PIPELINE}
"""The stages by name."""

TIMED_STAGES: tuple[str, ...] = tuple(stage.name for stage in PIPELINE if stage.timed)
"""Names of the stages that count in the latency budget: dense, sparse, fusion, rerank, export."""

MODEL_STAGES: tuple[str, ...] = tuple(stage.name for stage in PIPELINE if stage.uses_model)
"""Names of the stages that run a model: dense, sparse, rerank."""

RANKING_STAGES: tuple[str, ...] = tuple(name for name in STAGE["export"].inputs if STAGE[name].timed)
"""Names of the timed stages that make the ranked lists: dense, sparse, fusion, rerank."""

BUNDLE_ASSETS: tuple[str, ...] = tuple(stage.asset for stage in PIPELINE if stage.in_bundle)
"""Names of the assets that a bundle is made of, and of the bundle itself."""


def assets_read_by(asset: str) -> tuple[str, ...]:
    """Names of the assets whose artefacts ``asset`` reads."""
    stage = next(stage for stage in PIPELINE if stage.asset == asset)
    return tuple(STAGE[name].asset for name in stage.inputs)


@dataclass(frozen=True)
class RankedListKind:
    """One ranked list per query, made by ``stage``.

    ``name`` is used in evaluations, gates, metadata and file names, ``title`` for people. A ``first_stage`` list is an
    input of the fusion, with columns ``<name>_rank`` and ``<name>_score``.
    """

    name: str
    title: str
    stage: str
    first_stage: bool = False


LISTS: tuple[RankedListKind, ...] = (
    RankedListKind("dense", "Dense", "fusion", first_stage=True),
    RankedListKind("sparse", "Sparse", "fusion", first_stage=True),
    RankedListKind("lexical", "BM25", "fusion", first_stage=True),
    RankedListKind("fused", "Fused", "fusion"),
    RankedListKind("reranked", "Reranked", "rerank"),
)
"""The ranked lists in the order in which they are shown. Read it through the functions below, which see additions."""


def list_names() -> tuple[str, ...]:
    """Names of all ranked lists, in order."""
    return tuple(ranked.name for ranked in LISTS)


def list_title(name: str) -> str:
    """Give the word for people of a list, and any other name as it is."""
    return next((ranked.title for ranked in LISTS if ranked.name == name), name)


def first_stage_lists() -> tuple[str, ...]:
    """Names of the lists that are fused, in order."""
    return tuple(ranked.name for ranked in LISTS if ranked.first_stage)
