"""A Qdrant server with its limits, over the client's memory engine: request size, key, strict mode, faults, prefix."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from qdrant_client import QdrantClient, models


@dataclass
class LimitedServer:
    """What the server allows, and what arrived."""

    most_bytes: int = 32 << 20
    key: str | None = None
    prefix: str = ""
    faults: list[int] = field(default_factory=list)
    """Status codes of the next answers; 0 answers properly."""
    raw: bytes = b""
    """What every answer is, if anything."""
    port: int = 0
    created: dict[str, Any] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    engine: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def answer(self, method: str, path: str, raw: bytes, key: str | None) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        self.keys.add(key)
        if not path.startswith(self.prefix):
            return 404, "no such path"
        if self.faults and (status := self.faults.pop(0)):
            return status, "a fault"
        if self.key is not None and key != self.key:
            return 401, "Must provide an API key"
        if len(raw) > self.most_bytes:
            return 413, f"Payload too large: larger than allowed (limit: {self.most_bytes} bytes)"
        body = json.loads(raw or b"{}")
        parts = path.removeprefix(self.prefix).strip("/").split("/")
        if parts == [""]:
            return 200, {"title": "qdrant - vector search engine", "version": "1.16.0"}
        if parts == ["collections"]:
            return 200, {"collections": []}
        if len(parts) == 1 or parts[0] != "collections":
            return 404, ""
        return self._of_collection(unquote(parts[1]), f"{method} {'/'.join(parts[2:])}", body, len(raw))

    def _of_collection(self, name: str, what: str, body: dict[str, Any], size: int) -> tuple[int, Any]:  # noqa: C901 - one case per request
        engine, filter_of = self.engine, models.Filter.model_validate
        for condition in (body.get("filter") or {}).get("must", ()):
            if "key" in condition and condition["key"] not in self.indexed:
                return 400, f'Bad request: Index required but not found for "{condition["key"]}"'
        match what:
            case "GET exists":
                return 200, {"exists": engine.collection_exists(name)}
            case "PUT ":
                self.created[name] = body
                named = "size" not in body["vectors"]
                one = models.VectorParams.model_validate
                vectors = {n: one(v) for n, v in body["vectors"].items()} if named else one(body["vectors"])
                sparse = {n: models.SparseVectorParams() for n in body.get("sparse_vectors") or {}}
                return 200, engine.create_collection(name, vectors, sparse)
            case "GET ":
                return 200, engine.get_collection(name).model_dump(mode="json")
            case "PUT index":
                self.indexed.add(body["field_name"])
                return 200, {"operation_id": 1, "status": "completed"}
            case "PUT points":
                self.sizes.append(size)
                engine.upsert(name, [models.PointStruct.model_validate(p) for p in body["points"]])
                return 200, {"operation_id": 1, "status": "completed"}
            case "POST points":
                records = engine.retrieve(name, body["ids"], with_payload=body.get("with_payload", True))
                return 200, [record.model_dump(mode="json") for record in records]
            case "POST points/count":
                chosen = filter_of(body["filter"]) if body.get("filter") else None
                return 200, {"count": engine.count(name, chosen).count}
            case "POST points/scroll":
                records, offset = engine.scroll(
                    name, filter_of(body["filter"]), limit=body["limit"], offset=body.get("offset")
                )
                return 200, {"points": [r.model_dump(mode="json") for r in records], "next_page_offset": offset}
            case "POST points/delete":
                engine.delete(name, body["points"])
                return 200, {"operation_id": 1, "status": "completed"}
            case "POST points/query":
                asked = models.QueryRequest.model_validate(body)
                found = engine.query_points(
                    name, asked.query, asked.using, asked.prefetch, asked.filter, limit=asked.limit or 10
                )
                return 200, found.model_dump(mode="json")
        return 405, what


@contextmanager
def limited_server(**limits: Any) -> Iterator[LimitedServer]:
    """A server on a free port of this machine."""
    server = LimitedServer(**limits)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = urlsplit(self.path).path
            with lock:
                status, result = server.answer(self.command, path, raw, self.headers.get("api-key"))
            plain = {"result": result, "status": "ok", "time": 0.0} if path != f"{server.prefix}/" else result
            sent = (
                server.raw
                or json.dumps(plain if status == 200 else {"status": {"error": result}, "time": 0.0}).encode()
            )
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
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
