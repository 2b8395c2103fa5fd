"""Define the errors that are raised on purpose. Each message names the fault and the remedy.

The CLI and the Dagster steps print it as it is. Messages may name files, lines, settings, ids and counts. They never
carry chunk or query text.
"""

from __future__ import annotations

import builtins
import errno


class EnsembleError(Exception):
    """Base of all errors that are raised on purpose; the message is complete and safe to show."""


class InputError(EnsembleError):
    """An input file cannot be used as it is.

    ``where`` is a file relative to the input folder and, if possible, a line or record
    (``"docs/a_chunks.json, record 3"``). The problem does not quote the content.
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(f"{where}: {problem}. {remedy}")
        self.where = where
        self.problem = problem
        self.remedy = remedy


class SettingsError(EnsembleError):
    """A setting has a value that is not accepted; names the setting, its source, the value and the accepted ones."""


class ModelUnavailableError(EnsembleError):
    """A model's files cannot be found or loaded here."""


class ArtefactError(EnsembleError):
    """A stored artefact is missing, damaged or not of the expected shape."""


class ContractError(EnsembleError):
    """Something that is about to be exported breaks the export contract."""


class ServerError(EnsembleError):
    """A database server does not answer; names the server and what to do."""


class RefusedError(ServerError):
    """A database server refuses a request, and will refuse it again: a wrong key, too large, not what it expects."""


class StageError(EnsembleError):
    """A stage could not finish and has no fallback; names the stage and the item, never the item's text."""


class MemoryBudgetError(EnsembleError):
    """The work does not fit into the memory it may use; names the need, the limit and the setting to change."""


class LeaseTimeoutError(EnsembleError):
    """A device stayed taken for longer than the caller would wait; names the holder."""


class DeviceError(EnsembleError):
    """A compute device is missing, was lost, or cannot be used safely."""


def says_disk_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota is full, which no fallback mends."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def failure_word(error: BaseException) -> str:
    """Return the name of an exception's class, or of its nearest base that is built into Python. Never its message."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(builtins, kind.__name__))
