#!/usr/bin/env python3
"""Upload this bundle into Qdrant: named dense vectors and one named sparse vector per chunk.

    pip install "qdrant-client>=1.12"
    python THIS_SCRIPT --url http://localhost:6333        a server; the key comes from QDRANT_API_KEY
    python THIS_SCRIPT --path ./qdrant_storage            embedded storage in a folder, no server

Every option can come from the environment instead (QDRANT_URL, QDRANT_HOST, QDRANT_PORT, QDRANT_API_KEY, QDRANT_PATH,
QDRANT_COLLECTION). Points have fixed ids, so that running it again changes nothing and an interrupted upload can be
run again, or continued with --start-at.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

from qdrant_client import QdrantClient, models

COLLECTION = "guide_v4_mini"
POINTS_FILE = "ultimate_embeddings_v4_qdrant.jsonl"
VECTORS = {"mini": 4}
SPARSE_NAME = "sparse"


def arguments(argv=None):
    env = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=env("QDRANT_URL"), help="server, e.g. http://localhost:6333")
    parser.add_argument("--host", default=env("QDRANT_HOST", "localhost"), help="server, if there is no --url")
    parser.add_argument("--port", type=int, default=int(env("QDRANT_PORT", "6333")))
    parser.add_argument("--api-key", default=env("QDRANT_API_KEY"), help="better given as QDRANT_API_KEY")
    parser.add_argument("--path", default=env("QDRANT_PATH"), help="folder of an embedded storage, instead of a server")
    parser.add_argument("--collection", default=env("QDRANT_COLLECTION", COLLECTION))
    parser.add_argument("--batch-size", type=int, default=128, help="points per request")
    parser.add_argument("--start-at", type=int, default=0, help="first chunk to upload")
    return parser.parse_args(argv)


def connect(options):
    if options.path:
        return QdrantClient(path=options.path)
    if options.url:
        return QdrantClient(url=options.url, api_key=options.api_key)
    return QdrantClient(host=options.host, port=options.port, api_key=options.api_key)


def prepare(client, collection):
    """Create the collection, or make sure that the one there can hold these vectors."""
    if not client.collection_exists(collection):
        client.create_collection(
            collection,
            vectors_config={
                name: models.VectorParams(size=size, distance=models.Distance.COSINE) for name, size in VECTORS.items()
            },
            sparse_vectors_config={SPARSE_NAME: models.SparseVectorParams()},
        )
        return
    params = client.get_collection(collection).config.params
    there = {name: vector.size for name, vector in params.vectors.items()} if isinstance(params.vectors, dict) else {}
    missing = {name: size for name, size in VECTORS.items() if there.get(name) != size}
    if missing or SPARSE_NAME not in (params.sparse_vectors or {}):
        sys.exit(
            f"collection {collection!r} exists with other vectors: expected {VECTORS} and sparse {SPARSE_NAME!r}, "
            f"found {there} and sparse {sorted(params.sparse_vectors or {})}. Name another one with --collection"
        )


def point(line):
    record = json.loads(line)
    vectors = dict(record["vectors"])
    sparse = record["payload"].get("sparse_vector") or {}
    if sparse.get("indices"):
        # two terms of one chunk may share an index; Qdrant wants every index once
        weights = {}
        for index, value in zip(sparse["indices"], sparse["values"]):
            weights[index] = weights.get(index, 0.0) + value
        vectors[SPARSE_NAME] = models.SparseVector(indices=list(weights), values=list(weights.values()))
    return models.PointStruct(id=record["id"], vector=vectors, payload=record["payload"])


def upload(client, collection, path, batch_size, start_at):
    """Stream the points, a batch at a time; returns how many there were."""
    done = 0
    with open(path, encoding="utf-8", newline="\n") as lines:
        points = (point(line) for line in itertools.islice(lines, start_at, None))
        while batch := list(itertools.islice(points, batch_size)):
            client.upsert(collection, points=batch, wait=True)
            done += len(batch)
            print(f"\r{done} points", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return done


def main(argv=None):
    options = arguments(argv)
    client = connect(options)
    prepare(client, options.collection)
    path = Path(__file__).resolve().parent / POINTS_FILE
    done = upload(client, options.collection, path, options.batch_size, options.start_at)
    held = client.count(options.collection, exact=True).count
    print(f"uploaded {done} points; collection {options.collection!r} holds {held}")
    client.close()
    return 0 if held >= options.start_at + done else 1


if __name__ == "__main__":
    sys.exit(main())
