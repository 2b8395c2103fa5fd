"""Make token tables from token bodies: special tokens around single texts and pairs, truncation, joining.

All of this is work on arrays. ``tokenizer`` makes token bodies from texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import SettingsError

TASKS: tuple[Literal["document"], Literal["query"]] = ("document", "query")
"""What a text is to an encoder; a (query, chunk) pair counts as a document."""


@dataclass(frozen=True)
class TokenTable:
    """Token ids of many texts (or text pairs) as one ragged array; no Python list per text.

    Attributes:
        ids: ``[total_tokens] int32``, special tokens included, not padded.
        offsets: ``[n + 1] int64``; text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        second_from: ``[n] int32``, position in each text where the second segment starts (token type 1), or None
            for single texts.
        truncated: ``[n] bool``, whether tokens were cut off to fit the model.
        tasks: ``[n] uint8``, places in ``TASKS``; None where all are documents.
        arrays: further inputs of the model by name, ``[total_tokens] int32`` each, beside ``ids``.
        lost: ``[n] int64``, tokens that were cut off, where the model's own preprocessing made the rows.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    second_from: NDArray[np.int32] | None = None
    tasks: NDArray[np.uint8] | None = None
    arrays: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    lost: NDArray[np.int64] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, ``[n] int64``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens_lost(self) -> NDArray[np.int64]:
        """Tokens of every text that were cut off, ``[n] int64``; zeros where nothing counted them."""
        return np.zeros(len(self), np.int64) if self.lost is None else self.lost

    def token_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number the tokens of some rows in ``ids``, row after row."""
        return numbers_of_pieces(self.offsets[:-1][rows], self.lengths[rows])

    def segments(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token types of some rows, ``[len(rows), columns] int64``, at ``columns`` of every row."""
        if self.second_from is None:
            return np.zeros((len(rows), columns.shape[-1]), np.int64)
        return (columns >= self.second_from[rows][:, None]).astype(np.int64)


def numbers_of_pieces(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the members of pieces of an array, piece after piece: ``counts[i]`` from ``starts[i]`` on."""
    ends = np.cumsum(counts)
    numbers: NDArray[np.int64] = np.repeat(starts - ends + counts, counts) + np.arange(int(counts.sum()))
    return numbers


@dataclass(frozen=True)
class Batch:
    """Rows of a token table that go through a model together, padded to the longest.

    Attributes:
        rows: ``[size] int64`` row numbers in the token table.
        longest: tokens of the longest row.
        packed_tokens: tokens of all rows, where a device computes no padding; else 0.
    """

    rows: NDArray[np.int64]
    longest: int
    packed_tokens: int = 0

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Padded tokens, unless rows are packed: the size of what the device computes and holds."""
        return self.packed_tokens or self.size * self.longest


@dataclass(frozen=True)
class TokenBodies:
    """Token ids of texts without special tokens.

    Attributes:
        ids: ``[total] int32``.
        starts: ``[n] int64``; text ``i`` begins at ``ids[starts[i]]``.
        full_lengths: ``[n] int64``, tokens before the cap.
        cap: no text has more ids than this.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    cap: int

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Template:
    """The special token ids of a model's inputs: ``before A after``, and ``before A between B after`` for pairs.

    Attributes:
        second_segment: whether the tokenizer gives B and what follows it the token type 1.
    """

    single_before: tuple[int, ...]
    single_after: tuple[int, ...]
    pair_before: tuple[int, ...]
    pair_between: tuple[int, ...]
    pair_after: tuple[int, ...]
    second_segment: bool

    @property
    def single_specials(self) -> int:
        """Special tokens around one text."""
        return len(self.single_before) + len(self.single_after)

    @property
    def pair_specials(self) -> int:
        """Special tokens around and between two texts."""
        return len(self.pair_before) + len(self.pair_between) + len(self.pair_after)


NO_SPECIALS = Template((), (), (), (), (), second_segment=False)


def single_table(bodies: TokenBodies, template: Template, max_tokens: int) -> TokenTable:
    """Put special tokens around every text and cut it on the right to ``max_tokens``.

    Raises:
        SettingsError: if no token of a text would fit.
        ValueError: if the bodies were cut shorter than this needs.
    """
    room = _room(max_tokens, template.single_specials, bodies)
    counts = np.minimum(bodies.full_lengths, room)
    body = _Ragged(bodies.ids, bodies.starts, counts)
    ids, offsets = _compose([template.single_before, body, template.single_after], len(bodies))
    return TokenTable(ids, offsets, bodies.full_lengths > room)


def pair_table(
    queries: TokenBodies, chunks: TokenBodies, pairs: NDArray[np.int64], template: Template, max_tokens: int
) -> TokenTable:
    """Make (query, chunk) pairs as a CrossEncoder takes them, cut ``longest_first`` as sentence-transformers does.

    Args:
        queries: bodies of the first texts.
        chunks: bodies of the second texts.
        pairs: ``[n, 2] int64``, rows of ``queries`` and of ``chunks``.
        template: the model's special tokens.
        max_tokens: tokens per pair, special tokens included.

    Raises:
        SettingsError: if no token of a text would fit.
        ValueError: if the bodies were cut shorter than this needs.
    """
    room = min(_room(max_tokens, template.pair_specials, bodies) for bodies in (queries, chunks))
    full_first, full_second = queries.full_lengths[pairs[:, 0]], chunks.full_lengths[pairs[:, 1]]
    first, second = longest_first(full_first, full_second, room)
    ids, offsets = _compose(
        [
            template.pair_before,
            _Ragged(queries.ids, queries.starts[pairs[:, 0]], first),
            template.pair_between,
            _Ragged(chunks.ids, chunks.starts[pairs[:, 1]], second),
            template.pair_after,
        ],
        len(pairs),
    )
    lead = len(template.pair_before) + len(template.pair_between)
    second_from = (first + lead).astype(np.int32) if template.second_segment else None
    return TokenTable(ids, offsets, full_first + full_second > room, second_from)


def pair_lengths(
    queries: TokenBodies, chunks: TokenBodies, pairs: NDArray[np.int64], template: Template, max_tokens: int
) -> NDArray[np.int64]:
    """Count the tokens of every pair of ``pair_table``, special tokens included: ``[n] int64``."""
    room = max_tokens - template.pair_specials
    full = queries.full_lengths[pairs[:, 0]] + chunks.full_lengths[pairs[:, 1]]
    lengths: NDArray[np.int64] = np.minimum(full, room) + template.pair_specials
    return lengths


def longest_first(
    first: NDArray[np.int64], second: NDArray[np.int64], room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the tokens of each text that a pair keeps when both may use ``room`` together: ``[n] int64`` each.

    This is the tokenizers library's rule ``LongestFirst`` (``utils/truncation.rs``). The longer text is cut until both
    are equal, then both are cut. An odd token goes to the longer text, or to the second if they are equal.
    """
    swapped = first > second
    short, long = np.minimum(first, second), np.maximum(first, second)
    long = np.where(short > room, short, np.maximum(short, np.minimum(long, room - short)))
    over = short + long > room
    short, long = np.where(over, room // 2, short), np.where(over, room // 2 + room % 2, long)
    return np.where(swapped, long, short), np.where(swapped, short, long)


def _room(max_tokens: int, specials: int, bodies: TokenBodies) -> int:
    room = max_tokens - specials
    if room < 1:
        raise SettingsError(
            f"max_tokens is {max_tokens}, but the model needs {specials} special tokens; expected at least "
            f"{specials + 1}. Raise max_tokens"
        )
    if bodies.cap < room:
        raise ValueError(f"bodies keep {bodies.cap} tokens, {room} are needed")
    return room


@dataclass(frozen=True)
class _Ragged:
    """Pieces of a flat array: where each row's piece starts and how many ids it has."""

    source: NDArray[np.int32]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]


def _compose(segments: Sequence[tuple[int, ...] | _Ragged], rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Join fixed ids and ragged pieces, one after another in every row, to flat ids and offsets."""
    lengths = np.zeros(rows, np.int64)
    for segment in segments:
        lengths += segment.counts if isinstance(segment, _Ragged) else len(segment)
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(int(offsets[-1]), np.int32)
    cursor = offsets[:-1].copy()
    for segment in segments:
        if isinstance(segment, _Ragged):
            _copy(ids, cursor, segment)
            cursor += segment.counts
        else:
            for at, special in enumerate(segment):
                ids[cursor + at] = special
            cursor += len(segment)
    return ids, offsets


def _copy(ids: NDArray[np.int32], cursor: NDArray[np.int64], piece: _Ragged) -> None:
    # slices, row by row: an index array would be four times the size of what it copies
    for to, start, count in zip(cursor.tolist(), piece.starts.tolist(), piece.counts.tolist(), strict=True):
        ids[to : to + count] = piece.source[start : start + count]


def with_task(table: TokenTable, task: Literal["document", "query"]) -> TokenTable:
    """Return the table with all rows marked as documents, or as queries."""
    return replace(table, tasks=np.full(len(table), TASKS.index(task), np.uint8))


def join_tables(*tables: TokenTable) -> TokenTable:
    """Append the rows of tables to each other. Single texts only.

    Raises:
        ValueError: if a table holds pairs.
    """
    if any(table.second_from is not None for table in tables):
        raise ValueError("pairs are not joined")
    names = sorted({name for table in tables for name in table.arrays})
    lost = [table.lost for table in tables if table.lost is not None]
    return TokenTable(
        _joined([table.ids for table in tables], np.int32),
        np.append(0, np.cumsum(_joined([table.lengths for table in tables], np.int64))),
        _joined([table.truncated for table in tables], np.bool_),
        tasks=None if all(table.tasks is None for table in tables) else _joined(map(_tasks, tables), np.uint8),
        arrays={name: _joined([_array(table, name) for table in tables], np.int32) for name in names},
        lost=_joined(lost, np.int64) if len(lost) == len(tables) else None,
    )


def _joined(parts: Iterable[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts])


_ABSENT = {"attention_mask": 1}
"""Value of every token where a table does not have the array; 0 for others."""


def _array(table: TokenTable, name: str) -> NDArray[np.int32]:
    return table.arrays.get(name, np.full(len(table.ids), _ABSENT.get(name, 0), np.int32))


def _tasks(table: TokenTable) -> NDArray[np.uint8]:
    return np.zeros(len(table), np.uint8) if table.tasks is None else table.tasks


def take_rows(table: TokenTable, rows: NDArray[np.int64]) -> TokenTable:
    """Select rows of a table, in the given order."""
    counts = table.lengths[rows]
    starts = table.offsets[:-1][rows]
    ids, offsets = _compose([_Ragged(table.ids, starts, counts)], len(rows))
    return TokenTable(
        ids,
        offsets,
        table.truncated[rows],
        None if table.second_from is None else table.second_from[rows],
        None if table.tasks is None else table.tasks[rows],
        {name: _compose([_Ragged(values, starts, counts)], len(rows))[0] for name, values in table.arrays.items()},
        None if table.lost is None else table.lost[rows],
    )
