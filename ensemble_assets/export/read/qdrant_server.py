"""Connect to Qdrant: a server that may be slow or away for a moment, or embedded storage in a folder."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ensemble_assets.common.defaults import QDRANT_RETRIES, QDRANT_TIMEOUT
from ensemble_assets.common.errors import RefusedError, ServerError, SettingsError

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a second try may change: too busy, restarting, a gateway's time-out."""

_KEY_REFUSED = (401, 403)
_TOO_LARGE = 413
_LONGEST_WAIT = 30.0
_PORT, _TLS_PORT = 6333, 443
_LONGEST_NAME, _NOT_IN_NAMES, _SHOWN = 255, '<>:"/\\|?*', 60
"""Limits of the name of a collection: a server makes a folder of that name."""

_MOST_WORDS = 200
"""Characters of the server's own message that are repeated."""


@dataclass(frozen=True)
class Patience:
    """How long a request may take, and how often it is tried again; the wait doubles every time."""

    timeout: int = QDRANT_TIMEOUT
    retries: int = QDRANT_RETRIES
    first_wait: float = 1.0


class PatientClient:
    """A client whose every call is tried again after passing faults, and fails with one sentence.

    It is a ``RefusedError`` where another try changes nothing, else a ``ServerError``.
    """

    def __init__(self, client: QdrantClient, server: str, patience: Patience) -> None:
        self._client = client
        self._server = server
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return (lambda *given, **named: self._tried(value, given, named)) if callable(value) else value

    def _tried(self, call: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        for attempt in range(self._patience.retries + 1):
            try:
                return call(*given, **named)
            except ResponseHandlingException as error:
                fault = f"does not answer ({type(error.source).__name__})"
                remedy = "Check the address and the port, or raise qdrant.timeout"
                if "SSL" in str(error.source):
                    remedy = "It may speak http only: check the address"
            except (ValueError, AssertionError):
                raise RefusedError(
                    f"the Qdrant server {self._server} does not answer as Qdrant does. "
                    "Check the address and the port, which is that of its REST interface"
                ) from None
            except UnexpectedResponse as error:
                fault, remedy = _words(error)
                if error.status_code not in _PASSING:
                    raise RefusedError(f"the Qdrant server {self._server} {fault}. {remedy}") from None
            if attempt < self._patience.retries:
                time.sleep(min(_LONGEST_WAIT, self._patience.first_wait * 2**attempt))
        raise ServerError(f"the Qdrant server {self._server} {fault}. {remedy}")


def _words(error: UnexpectedResponse) -> tuple[str, str]:
    if error.status_code in _KEY_REFUSED:
        return f"refuses the API key ({error.status_code})", "Set QDRANT_API_KEY, or give --api-key"
    try:
        said = str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        said = ""
    # a format error quotes the request
    said = "" if said.startswith("Format error") else f": {said[:_MOST_WORDS]}" if said else ""
    if error.status_code == _TOO_LARGE or "larger than" in said:
        return f"refuses a request as too large ({error.status_code})", "Lower qdrant.max_request_mb to its limit"
    return f"answers {error.status_code} {error.reason_phrase}{said}", "See the server's log"


def connect(
    url: str, path: str, api_key: str | None, *, port: int = 0, patience: Patience | None = None
) -> QdrantClient | PatientClient:
    """Connect to a server, or to embedded storage in a folder; ``SettingsError`` if the storage is in use.

    Without a port, in ``url`` or as ``port``, it is 6333 for http; for https 443, or 6333 where 443 does not answer.
    """
    if not url.strip():
        return _embedded(Path(path))
    url, api_key, patience = url.strip(), (api_key or "").strip() or None, patience or Patience()
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError("the API key of Qdrant has characters that no key has. Copy it again")
    *probed, last = ports_of(url, port)
    for each in probed:
        client = _client(url, each, api_key, Patience(patience.timeout, retries=0))
        try:
            client.get_collections()
        except ServerError as error:
            if "does not answer" in str(error):
                continue
        return _client(url, each, api_key, patience)
    return _client(url, last, api_key, patience)


def _embedded(folder: Path) -> QdrantClient:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return QdrantClient(path=str(folder))
    except RuntimeError:
        problem = "is in use by another process. Wait for it, or use a server"
    except OSError as error:
        problem = f"cannot be made or opened ({error.strerror}). Give another folder"
    except (ValueError, KeyError, TypeError):
        problem = "cannot be read. Give another folder, or remove this one: an upload fills it anew"
    raise SettingsError(f"the embedded storage in {folder.name} {problem}")


def require_collection_name(name: str) -> None:
    """Refuse a name that no server takes, as a ``SettingsError``."""
    if not 1 <= len(name) <= _LONGEST_NAME or name in (".", "..") or any(c in _NOT_IN_NAMES or c < " " for c in name):
        raise SettingsError(
            f"Qdrant collection {name[:_SHOWN]!r}: a name has 1 to {_LONGEST_NAME} characters and none of "
            f"{_NOT_IN_NAMES}. Give another one with --collection"
        )


def ports_of(url: str, port: int) -> tuple[int, ...]:
    """List the ports to try for an address; the one in the address comes before ``port``."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    try:
        given = parts.port or port
    except ValueError:
        raise SettingsError(f"--url {url}: its port is no number from 1 to 65535") from None
    if given:
        return (given,)
    return (_TLS_PORT, _PORT) if parts.scheme == "https" else (_PORT,)


def _client(url: str, port: int, api_key: str | None, patience: Patience) -> PatientClient:
    parts = urlsplit(url if "://" in url else f"//{url}")
    # a server that is away is said in one sentence, when it is asked; the client's thread may warn of it at any time
    warnings.filterwarnings("ignore", "Failed to obtain server version", UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            client = QdrantClient(url=url, port=port, api_key=api_key, timeout=patience.timeout)
        except ValueError as error:
            raise SettingsError(f"--url {url}: is no address of a server ({error})") from None
    return PatientClient(client, f"at {parts.hostname}:{port}{parts.path.rstrip('/')}", patience)
