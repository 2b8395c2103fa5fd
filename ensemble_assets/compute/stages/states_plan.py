"""Plan the token states that late interaction needs: kept by the dense stage, or made again for the candidates.

Keeping costs a share of encoding every text. Encoding again costs the texts of all distinct candidates. Whichever is
cheaper is taken, unless it is too much: states that do not fit onto the disk as planned, or so many candidates that
late interaction would not be worth its time. Nothing here depends on how fast the machine was today, so a run's order
does not either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ensemble_assets.compute.backends.token_states import SCALE_BYTES

KEEPING_SHARE = 0.04
"""Time to turn a token's states into bytes and store them, as a share of encoding it (``docs/decisions/0025``)."""

MOST_AGAIN = 0.05
"""Largest share of the dense stage's tokens that is encoded again: late interaction costs no more by default."""

States = Literal["kept", "again", "off"]
Reason = Literal["cheaper", "few_candidates", "over_states_gb", "no_reuse", "no_token_states"]


@dataclass(frozen=True)
class StatesPlan:
    """The decision, its reason, and the figures that it was made from.

    Attributes:
        states: ``kept`` by the dense stage, made ``again`` for the candidates, or ``off``: no late interaction.
        tokens: of all chunks and queries.
        tokens_again: tokens that encoding the candidates again is expected to take.
        bytes: of the states of all tokens.
    """

    states: States
    reason: Reason
    tokens: int = 0
    tokens_again: int = 0
    bytes: int = 0


NO_TOKEN_STATES = StatesPlan("off", "no_token_states")


@dataclass(frozen=True)
class StatesWanted:
    """Late interaction that is to come.

    Attributes:
        slug: of the dense model whose states are compared.
        depth: candidates per query.
        most_bytes: of states on disk.
        stored: whether rows are stored at all.
    """

    slug: str
    depth: int
    most_bytes: int
    stored: bool = True

    def plan(self, chunk_tokens: int, query_tokens: int, chunks: int, queries: int, width: int) -> StatesPlan:
        """Decide for so many texts and tokens, with states of ``width`` components."""
        share = expected_candidates(chunks, queries, self.depth) / max(1, chunks)
        again, tokens = int(share * chunk_tokens) + query_tokens, chunk_tokens + query_tokens
        size = tokens * (width + SCALE_BYTES)

        def planned(states: States, reason: Reason) -> StatesPlan:
            return StatesPlan(states, reason, tokens, again, size)

        affordable: States = "again" if again <= MOST_AGAIN * tokens else "off"
        if again <= KEEPING_SHARE * tokens:
            return planned("again", "few_candidates")
        if not self.stored:
            return planned(affordable, "no_reuse")
        if size > self.most_bytes:
            return planned(affordable, "over_states_gb")
        return planned("kept", "cheaper")


def expected_candidates(chunks: int, queries: int, depth: int) -> float:
    """Expect so many distinct chunks among the candidates, if every chunk were as likely as any other.

    Real queries share more of their candidates: SciFact's 300 queries have 3,119 where 3,580 are expected.
    """
    missed = 1 - min(depth, chunks) / max(1, chunks)
    return chunks * (1 - missed**queries)
