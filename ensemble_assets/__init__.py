"""Retrieval artifacts from chunked documents and queries, orchestrated by Dagster.

The package's parts and the one direction in which they import each other are listed in docs/architecture.md. Nothing is
imported before a function is called, so that ``import ensemble_assets`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble_assets.common.version import __version__

if TYPE_CHECKING:
    from os import PathLike

    from ensemble_assets.asking.searcher import Hit, QueryVectors

__all__ = ["__version__", "encode_query", "search"]


def search(bundle: str | PathLike[str], question: str, top: int = 10) -> list[Hit]:
    """Search a bundle's folder for a question, and give the ``top`` best passages.

    Every hit has ``rank``, ``score``, ``heading``, ``source``, ``text``, ``chunk_id``, and ``ranks`` in every list. The
    bundle that was asked last stays open, with its models. Nothing of the question is written anywhere.
    """
    from ensemble_assets.asking.last_asked import searcher_of

    return searcher_of(bundle).ask(question, top)


def encode_query(bundle: str | PathLike[str], question: str) -> QueryVectors:
    """Encode a question with the models of a bundle, to search a database that the bundle was uploaded into.

    ``dense`` has a unit vector for every dense model by its name, ``sparse`` the ``indices`` and ``values`` of the
    sparse one, or is None. ``tokens`` has a unit vector for every token, or is None where the bundle has no token
    vectors. docs/qdrant.md has examples. The bundle stays open as with ``search``.
    """
    from ensemble_assets.asking.last_asked import searcher_of

    return searcher_of(bundle).encode(question)
