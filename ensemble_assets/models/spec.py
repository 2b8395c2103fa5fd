"""Say what a model is, where its files come from, and how its text is prepared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ensemble_assets.common.errors import ModelUnavailableError

ModelKind = Literal["dense", "sparse", "rerank"]
Pooling = Literal["mean", "cls", "last_token", "splade_max", "cross_encoder", "late_interaction", "multi_vector"]

POOLINGS: MappingProxyType[ModelKind, tuple[Pooling, ...]] = MappingProxyType(
    {
        "dense": ("mean", "cls", "last_token"),
        "sparse": ("splade_max",),
        "rerank": ("cross_encoder", "late_interaction"),
    }
)
"""Accepted ways from token states to an output, by kind of model.

``multi_vector``, a ColBERT model's own head, is nobody's choice: a reranker's files say so (``backends.describe``).
"""

_UNPACKING = 1
"""Goes up when ``packed_encoder`` writes another folder; packed models are then taken apart again."""

_COMMIT = re.compile("[0-9a-f]{40}")
"""A full Git hash, which names one commit; a shorter one may be a branch, which moves."""

DEFAULT_SHARE = 0.3
"""Share in the final score of a reranker that states none.

A reranker that orders as well as the fused list does gains most between 0.2 and 0.5 (docs/quality.md, "The larger
reranker"), and published CrossEncoders order better than that. docs/decisions/0018 has the reasons.
"""


@dataclass(frozen=True)
class PackageSource:
    """Weights inside an installed package.

    Attributes:
        distribution: name of the package for pip.
        module: its top-level module, which is never imported.
        folder: relative to the module's folder.
    """

    distribution: str
    module: str
    folder: str


@dataclass(frozen=True)
class PackedSource:
    """Weights in one file of a package, which ``packed_encoder`` takes apart into a folder, once per machine.

    Attributes:
        distribution: name of the package for pip.
        version: the one whose file is known.
        module: its top-level module, which is never imported.
        file: relative to the module's folder.
        sha256: of the file, 64 hex digits.
    """

    distribution: str
    version: str
    module: str
    file: str
    sha256: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the file and the way in which it is taken apart."""
        return f"{self.sha256[:14]}{_UNPACKING:02x}"


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository at a revision: a full commit hash, or the name of a branch."""

    repository: str
    revision: str = "main"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision names one commit for ever."""
        return bool(_COMMIT.fullmatch(self.revision))


@dataclass(frozen=True)
class FolderSource:
    """A local folder in Hugging Face layout."""

    path: str


Source = PackageSource | PackedSource | HubSource | FolderSource


@dataclass(frozen=True)
class ModelSpec:
    """The description of one model.

    Attributes:
        slug: name in settings, file names and telemetry: lower case letters, digits, ``-`` and ``.``.
        kind: which stage uses it.
        hf_model_id: its name in exported bundles (``model_info.hf_model_id``).
        source: where the weights are.
        dimension: width of its vectors; size of the vocabulary for sparse models; 1 for rerankers. 0: as its files say.
        max_tokens: most tokens of a text (of a pair for rerankers) with special tokens. Longer texts are truncated and
            counted.
        windows: most windows of ``max_tokens`` in which a longer chunk is read. The rest is truncated.
        pooling: how token states become the output.
        licence: SPDX identifier.
        query_prefix: text before every query.
        document_prefix: text before every chunk.
        weight: weight among several dense models when their scores are combined.
        share: share of a reranker in the final score, unless ``rerank.weight`` is set; ``share_beside_late`` beside
            late interaction, where that was measured; else the same.
        late_share: share of late interaction over a dense model's token states; 0 where none was measured.
        trust_remote_code: whether code of the repository may run; needs a 40-digit revision.
        english_only: whether it is known to read English and nothing else; a run over other texts warns then.
    """

    slug: str
    kind: ModelKind
    hf_model_id: str
    source: Source
    dimension: int
    max_tokens: int
    pooling: Pooling
    licence: str
    query_prefix: str | None = None
    document_prefix: str | None = None
    weight: float = 1.0
    share: float = DEFAULT_SHARE
    trust_remote_code: bool = False
    windows: int = 1
    english_only: bool = False
    share_beside_late: float | None = None
    late_share: float = 0.0

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a chunk that are read, in all its windows."""
        return self.max_tokens * self.windows

    @property
    def is_colbert(self) -> bool:
        """Whether the model has a head of its own that makes a vector for each token."""
        return self.pooling == "multi_vector"


def may_run_code(spec: ModelSpec) -> bool:
    """Whether the model's own code may run: only from a pinned revision.

    Raises:
        ModelUnavailableError: if it is allowed without a full revision.
    """
    if not spec.trust_remote_code:
        return False
    if isinstance(spec.source, HubSource) and spec.source.is_pinned:
        return True
    raise ModelUnavailableError(
        f"{spec.slug}: trust_remote_code is on without a pinned revision. Set source.revision to a full 40-digit commit"
    )
