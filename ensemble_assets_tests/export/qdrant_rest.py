"""Just enough of Qdrant's REST interface, in memory, to see what a client sends to a server: requests and API keys.

It stores points by id and counts them. Searching is not there; the embedded engine is used for that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class RestServer:
    """What arrived.

    Attributes:
        port: on 127.0.0.1.
        collections: configuration by name.
        points: by collection and id.
        requests: method and path, in order.
        keys: API keys that were sent; None where none was.
    """

    port: int = 0
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    points: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts == [""]:
            return 200, {"title": "qdrant - vector search engine", "version": "1.16.0"}
        name, rest = parts[1], parts[2:]
        if rest == ["exists"]:
            return 200, {"exists": name in self.collections}
        if method == "PUT" and not rest:
            self.collections[name] = body
            self.points[name] = {}
            return 200, True
        if name not in self.collections:
            return 404, None
        if method == "PUT" and rest == ["points"]:
            self.points[name].update({point["id"]: point for point in body["points"]})
            return 200, {"operation_id": 1, "status": "completed"}
        if method == "POST" and rest == ["points"]:
            there = (self.points[name].get(identity) for identity in body["ids"])
            return 200, [{"id": point["id"], "payload": point["payload"]} for point in there if point]
        if method == "POST" and rest == ["points", "count"]:
            return 200, {"count": len(self.points[name])}
        return 405, None


@contextmanager
def rest_server() -> Iterator[RestServer]:
    """A server on a free port of this machine."""
    server = RestServer()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            path = urlsplit(self.path).path
            server.requests.append(f"{self.command} {path}")
            server.keys.add(self.headers.get("api-key"))
            status, result = server.answer(self.command, path, body)
            answer = result if path == "/" else {"result": result, "status": "ok", "time": 0.0}
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_PUT = do_POST = _reply  # noqa: N815 - the names are http.server's

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
