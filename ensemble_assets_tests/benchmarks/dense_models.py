"""Two dense models of a run, alone and combined: ``python -m ensemble_assets_tests.benchmarks.dense_models OUT NAME``.

``OUT`` is the output folder of a run with two dense models and judgements, ``NAME`` its collection. Prints nDCG@10 of
either model, of their lists combined by z-scores with several weights, and of the weighted mean of raw cosines.

``--messages de`` makes the collection ``OUT/NAME`` instead, from the German messages of GTK and GLib on this machine
(``/usr/share/locale``): the second halves of 400 messages are the chunks, the first halves of 150 of them the queries.
"""

from __future__ import annotations

import argparse
import gettext
import json
from pathlib import Path

import numpy as np
import polars as pl

from ensemble_assets.artefacts.store import artefact_store
from ensemble_assets.retrieval.dense_run import dense_run
from ensemble_assets.retrieval.dense_topk import DenseModel
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.ranked_lists import with_chunk_ids

_WEIGHTS = ((1, 0), (0, 1), (1, 1), (2, 1), (1, 2))
_MESSAGES, _QUERIES, _LEAST_LETTERS = 400, 150, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("collection")
    parser.add_argument("--messages", help="make the collection of this language first, and run nothing")
    arguments = parser.parse_args()
    if arguments.messages:
        write_messages(arguments.output / arguments.collection, arguments.messages)
        return
    for name, quality in qualities(arguments.output, arguments.collection).items():
        print(f"{name:40} {quality:.4f}")


def write_messages(folder: Path, language: str) -> None:
    """Write a collection of halved messages, with queries and judgements."""
    messages = []
    for domain in ("gtk30", "glib20"):
        with Path(f"/usr/share/locale/{language}/LC_MESSAGES/{domain}.mo").open("rb") as file:
            translated = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # no other way to list
        messages += [
            text for key, text in translated.items()
            if isinstance(key, str) and len(key) > _LEAST_LETTERS
        ]  # fmt: skip
    halves = [(text[: (cut := _middle(text))], text[cut:]) for text in messages[:_MESSAGES]]
    folder.mkdir(parents=True)
    chunks = [{"text": end, "metadata": {"chunk_id": f"c{n}"}} for n, (_, end) in enumerate(halves)]
    (folder / "messages_chunks.json").write_text(json.dumps(chunks))
    queries = [{"query_id": f"q{n}", "text": begin} for n, (begin, _) in enumerate(halves[:_QUERIES])]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = [f"q{n}\tc{n}\t1\n" for n in range(len(queries))]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def _middle(text: str) -> int:
    """Place of the first blank of the second half; the middle itself where there is none."""
    middle = len(text) // 2
    return max(text.find(" ", middle), 0) or middle


def qualities(output: Path, collection: str) -> dict[str, float]:
    """nDCG@10 by way of ranking."""
    store = artefact_store(str(output / ".artifacts"), output)
    ids = store.load(collection, "chunks").frame("chunks")["chunk_id"]
    queries, dense = store.load(collection, "queries"), store.load(collection, "dense_embeddings")
    public_ids = queries.frame("queries")["public_id"].to_list()
    judged = queries.frame("qrels")
    slugs = [model.slug for model in dense.record.layout]
    arrays = {slug: (dense.array(f"chunks.{slug}"), dense.array(f"queries.{slug}")) for slug in slugs}

    def quality(models: list[DenseModel]) -> float:
        run: pl.DataFrame = with_chunk_ids(dense_run(models, ids, public_ids, 100), ids)
        return evaluate({"dense": run}, judged).means()["dense"]

    figures = {}
    for weights in _WEIGHTS:
        weighted = [
            DenseModel(slug, *arrays[slug], weight=weight)
            for slug, weight in zip(slugs, weights, strict=True) if weight
        ]  # fmt: skip
        name = " ".join(f"{slug} {weight}" for slug, weight in zip(slugs, weights, strict=True) if weight)
        figures[f"z-scores, {name}" if len(weighted) > 1 else name] = quality(weighted)
    for weights in ((1, 1), (2, 1)):
        # the mean of inner products is the inner product of the scaled vectors side by side
        sides = [
            np.hstack([np.sqrt(weight) * arrays[slug][side] for slug, weight in zip(slugs, weights, strict=True)])
            for side in (0, 1)
        ]
        documents, asked = (side.astype(np.float32) for side in sides)
        figures[f"mean of cosines {weights[0]}:{weights[1]}"] = quality([DenseModel("mean", documents, asked)])
    return figures


if __name__ == "__main__":
    main()
