"""Take a part of a BEIR collection, with as large a part of its judged queries: stages keep their proportions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
SCIFACT = _ROOT.parent / "shared" / "data" / "eval" / "scifact"
SAMPLE = _ROOT / "ensemble_assets" / "sample" / "pydoc"


def write_subset(source: Path, target: Path, documents: int) -> None:
    """Write the first judged queries, their relevant documents, and the first other documents up to ``documents``.

    ``documents`` 0 copies all. A folder in another layout (the sample collection) is copied whole.
    """
    if documents <= 0 or not (source / "corpus.jsonl").is_file():
        shutil.copytree(source, target)
        return
    lines = (source / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    corpus = {json.loads(line)["_id"]: line for line in lines}
    header, *judged = (source / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    by_query: dict[str, list[tuple[str, str]]] = {}
    for row in judged:
        query, document, score = row.split("\t")
        by_query.setdefault(query, []).append((document, score))
    wanted = max(3, round(len(by_query) * documents / len(corpus)))
    kept_queries = dict(list(by_query.items())[:wanted])
    relevant = dict.fromkeys(document for pairs in kept_queries.values() for document, _ in pairs)
    kept = [*relevant, *(document for document in corpus if document not in relevant)][: max(documents, len(relevant))]
    order = set(kept)
    queries = (source / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    (target / "qrels").mkdir(parents=True)
    _write(target / "corpus.jsonl", [line for name, line in corpus.items() if name in order])
    _write(target / "queries.jsonl", [line for line in queries if json.loads(line)["_id"] in kept_queries])
    rows = [f"{query}\t{name}\t{score}" for query, pairs in kept_queries.items() for name, score in pairs]
    _write(target / "qrels" / "test.tsv", [header, *rows])


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
