"""Defaults that an option shares with functions below the settings, so that each is typed once."""

from __future__ import annotations

FILE_PREFIX = r"[\w-][\w.-]*"
FILE_PREFIX_WORDS = "letters, digits, '-', '_' and '.', not starting with '.'"
"""A plain start of a file name, as a regular expression and for people."""

CEILING_BYTES = 12_000_000_000
"""Most memory in use on a device, all processes counted: a T4 of 16 GB stays usable for others."""

SOFT_FRACTION = 0.9
"""Share of the ceiling that batches are planned to."""

LEASE_SECONDS = 3600.0
"""Longest wait for a device."""

BATCH_TOKENS = 4096
"""Padded tokens of a CPU batch, and of the first batch on a GPU. Larger CPU batches do not fit into the cache and are
no faster."""

TOP_K = 256
"""Terms of a chunk's sparse vector. On SciFact nDCG@10 is the same with 128 and 256, and drops below 128."""

RERANK_DEPTH = 20
"""Candidates per query that the reranker scores."""

RERANK_FLOOR = 5
"""Candidates per query that are scored even if the time is over."""

COVERAGE_WARN = 0.95
"""A smaller share of chunks with a sparse vector is a warning."""

COVERAGE_ERROR = 0.8
"""A smaller share of chunks with a sparse vector is an error."""

DERIVED_QUERIES = 50
"""Most queries that are derived from headings."""

QDRANT_POINTS = 128
"""Points per request of an upload."""

QDRANT_REQUEST_MB = 32
"""Largest request of an upload: a server refuses more than 32 MiB unless it is set otherwise."""

QDRANT_TIMEOUT = 60
"""Seconds of one request: the client's own 5 are too few for a batch of long vectors on a busy server."""

QDRANT_RETRIES = 4
"""Further tries of a request, after 1, 2, 4 and 8 s: a server that restarts is back by then."""
