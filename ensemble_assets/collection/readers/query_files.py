"""Choose the files of a collection's folder that hold its queries and its judgements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.collection.readers.input_files import InputFile, files_below, printable
from ensemble_assets.collection.readers.layouts import SPLITS, Role, named
from ensemble_assets.common.errors import InputError

PLAIN_NAMES = {
    Role.QUERIES: ("queries.jsonl", "queries.tsv"),
    Role.JUDGEMENTS: ("qrels/test.tsv", "qrels.tsv", "qrels.txt"),
}
"""Names that go before all others where no split is asked for. Having several is an error."""


@dataclass(frozen=True)
class ChosenFiles:
    """The files to read, shards of one table, in order; and the others of the same role."""

    chosen: tuple[InputFile, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first file's name, for reports and errors."""
        return self.chosen[0].source if self.chosen else ""


def choose_files(folder: Path, role: Role, split: str = "") -> ChosenFiles:
    """Choose the queries or the judgements of ``split``, or else of the first split that is there.

    Queries whose name says no split serve every split. Two candidates, and judgements of other splits only, are an
    ``InputError``.
    """
    tables: dict[str, list[str]] = {}
    for relative, _ in sorted(files_below(folder)):
        if named(relative).role is role:
            tables.setdefault(named(relative).table, []).append(relative)
    files = [name for names in tables.values() for name in names]
    ranked = sorted((_rank(names[0], role, split), names) for names in tables.values())
    if not ranked:
        return ChosenFiles()
    best, chosen = ranked[0]
    if best == _NEVER:
        there = ", ".join(map(printable, files))
        raise InputError(folder.name, f"has no {role.value} of split {split!r}", f"There are: {there}")
    plain = PLAIN_NAMES[role]
    rivals = [names[0] for rank, names in ranked if rank == best]
    rivals.sort(key=lambda name: (name not in plain, plain.index(name) if name in plain else 0, name))
    if len(rivals) > 1:
        problem = f"has {' and '.join(map(printable, rivals))}"
        raise InputError(folder.name, problem, "Keep one, or give the file to use, or its split with queries.split")
    others = tuple(printable(name) for name in files if name not in chosen)
    return ChosenFiles(tuple(InputFile(folder / name, printable(name)) for name in chosen), others)


_NEVER = 99


def _rank(relative: str, role: Role, split: str) -> int:
    """Rank a table: 0 is read first. Shards have the rank of the first."""
    own = named(relative).split
    if split:
        return 0 if own == split else 1 if not own and role is Role.QUERIES else _NEVER
    if relative in PLAIN_NAMES[role]:
        return 0
    return 1 + (0 if not own else 1 + SPLITS.index(own))


def given_file(path: Path) -> ChosenFiles:
    """Take a file that was named by hand."""
    return ChosenFiles((InputFile(path, printable(path.name)),))
