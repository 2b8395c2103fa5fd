"""One published layout: a name, a kind, and the function that writes its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["dense", "sparse", "rerank"]
Expected = Literal["equal", "refused", "either"]
Build = Callable[[Path], None]


@dataclass(frozen=True)
class Layout:
    """A way in which a model is published, and what the product should make of it.

    Attributes:
        name: unique; also the name of the model on the hub, below ``owner``.
        kind: which stage runs it.
        build: writes the model's files into an empty folder.
        note: what is special about it, and which published models look like it.
        expected: whether the product must give what sentence-transformers gives, or refuse the model; ``either`` for
            models that may be refused: deprecated pieces, and networks whose vectors depend on a batch's padding.
        owner: the organisation in the hub id; empty: one per kind, so that kinds may share names.
        ranking: whether the order of the dense search is compared too (models that are meant for dot products).
        entry: fields of the model's entry in a models file (profile ``custom``); None: chosen by its id.
        local: whether the model is chosen by the path of its folder.
    """

    name: str
    kind: Kind
    build: Build
    note: str
    expected: Expected = "equal"
    owner: str = ""
    ranking: bool = False
    entry: Mapping[str, Any] | None = None
    local: bool = False

    @property
    def hub_id(self) -> str:
        """The id as a user writes it."""
        return f"{self.owner or 'zoo-' + self.kind}/{self.name}"

    @property
    def key(self) -> str:
        """What names the layout among all: its kind, its owner where it has one of its own, and its name."""
        return "/".join(part for part in (self.kind, self.owner, self.name) if part)
