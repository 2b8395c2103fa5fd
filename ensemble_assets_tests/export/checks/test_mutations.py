"""Every way to break a bundle is caught by the gate that is named for it, and says where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble_assets_tests.export.checks.bundles import Made, everything, failed, plain


def test_a_sound_bundle_passes_every_gate(tmp_path: Path) -> None:
    results = everything(tmp_path / "on").judge()
    assert failed(results) == set(), results
    assert not results["rerank_fallbacks"].passed, "a query that was not reranked is a warning"
    assert results["rerank_fallbacks"].severity == "WARN"
    assert {name for name, result in results.items() if not result.passed} == {"rerank_fallbacks"}


def test_a_sound_bundle_with_both_stages_off_passes_every_gate_byte_for_byte(tmp_path: Path) -> None:
    off, on = plain(tmp_path / "off"), everything(tmp_path / "on")
    results = off.judge(against=off.folder)
    assert all(result.passed for result in results.values()), results
    assert results["v40_parity"].numbers["rows"] == 3
    assert on.judge(against=off.folder)["v40_parity"].passed, "it is the same v4.0 bundle underneath"
    assert off.judge(against=on.folder)["v40_parity"].passed


def renamed(record: dict, old: str, new: str) -> dict:
    return {(new if key == old else key): value for key, value in record.items()}


def rename_payload_key(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[1].update(payload=renamed(r[1]["payload"], "text_preview", "preview")))


def rename_metadata_key_everywhere(made: Made) -> None:
    for content in ("qdrant.jsonl",):
        made.lines(content, lambda r: r[1].update(payload=renamed(r[1]["payload"], "qdrant_collection", "target")))
    made.document(
        made.path("metadata.json").name, lambda v: v.__setitem__(1, renamed(v[1], "qdrant_collection", "target"))
    )


def rename_statistic(made: Made) -> None:
    def change(stats: dict) -> None:
        stats["model_config"] = renamed(stats["model_config"], "max_tokens", "limit")

    made.document(made.path("stats.json").name, change)


def change_type(made: Made) -> None:
    made.lines(
        "qdrant.jsonl", lambda r: r[2]["payload"].update(full_text_length=str(r[2]["payload"]["full_text_length"]))
    )


def change_type_in_loader_key(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[2]["payload"].update(qdrant_collection=7))
    made.document(made.path("metadata.json").name, lambda v: v[2].update(qdrant_collection=7))


def change_id_type(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[0].update(id="0"))


def reorder_names(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[0]["payload"]["dense_vector_names"].reverse())


def reorder_keys(made: Made) -> None:
    def change(records: list) -> None:
        payload = records[0]["payload"]
        payload["model_info"] = payload.pop("model_info")

    made.lines("qdrant.jsonl", change)


def new_key_before_old_ones(made: Made) -> None:
    made.document(made.path("stats.json").name, lambda v: v.update(model_config={"new": 1, **v["model_config"]}))


def reorder_a_list_of_the_chunk(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[2]["payload"]["tags"].reverse())
    made.document(made.path("metadata.json").name, lambda v: v[2]["tags"].reverse())


def change_a_value_everywhere(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[1]["payload"].update(modal_hint="code"))
    made.document(made.path("metadata.json").name, lambda v: v[1].update(modal_hint="code"))


def drop_a_point(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r.pop())


def drop_metadata(made: Made) -> None:
    made.document(made.path("metadata.json").name, lambda v: v.pop(0))


def drop_a_sparse_record(made: Made) -> None:
    made.lines("sparse.jsonl", lambda r: r.pop())


def drop_a_record_everywhere(made: Made) -> None:
    for content in ("qdrant.jsonl", "sparse.jsonl"):
        made.lines(content, lambda r: r.pop())
    for content in ("metadata.json", "texts.json"):
        made.document(made.path(content).name, lambda v: v.pop())
    for content in ("embeddings.npy", "other_1.5b_embeddings.npy"):
        np.save(made.path(content), np.load(made.path(content))[:-1])


def shift_array(made: Made) -> None:
    path = made.path("embeddings.npy")
    np.save(path, np.roll(np.load(path), 1, axis=0))


def shift_companion_vectors(made: Made) -> None:
    def change(records: list) -> None:
        vectors = [record["vectors"]["other-1.5b"] for record in records]
        for record, vector in zip(records, vectors[1:] + vectors[:1], strict=True):
            record["vectors"]["other-1.5b"] = vector

    made.lines("qdrant.jsonl", change)


def shift_dense_everywhere(made: Made) -> None:
    shift_array(made)
    rows = np.load(made.path("embeddings.npy"))

    def change(records: list) -> None:
        for record, row in zip(records, rows, strict=True):
            record["vectors"]["mini"] = row.tolist()

    made.lines("qdrant.jsonl", change)


def shift_texts(made: Made) -> None:
    made.document(made.path("texts.json").name, lambda v: v.append(v.pop(0)))


def shift_sparse(made: Made) -> None:
    def change(records: list) -> None:
        records.append(records.pop(0))
        for row, record in enumerate(records):
            record["id"] = row

    made.lines("sparse.jsonl", change)


def nan_in_array(made: Made) -> None:
    rows = np.load(made.path("embeddings.npy"))
    rows[1, 2] = np.nan
    np.save(made.path("embeddings.npy"), rows)


def nan_in_point(made: Made) -> None:
    made.lines("qdrant.jsonl", lambda r: r[1]["vectors"]["mini"].__setitem__(0, float("nan")))


def nan_in_sparse(made: Made) -> None:
    made.lines("sparse.jsonl", lambda r: r[1]["sparse_vector"]["values"].__setitem__(0, float("inf")))


def longer_vector(made: Made) -> None:
    rows = np.load(made.path("embeddings.npy"))
    np.save(made.path("embeddings.npy"), rows * np.float32(1.5))


def text_of_a_number(made: Made) -> None:
    path = made.path("qdrant.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace('"mini": [', '"mini": [0.0e0, '), encoding="utf-8")


def _replace(made: Made, content: str, old: str, new: str) -> None:
    text = made.path(content).read_text(encoding="utf-8")
    assert old in text
    made.path(content).write_text(text.replace(old, new, 1), encoding="utf-8")


def number_of_metadata(made: Made) -> None:
    _replace(made, "metadata.json", '"tiny": 1e-07', '"tiny": 0.0000001')


def number_of_a_vector(made: Made) -> None:
    lines = made.path("qdrant.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    number = json.loads(lines[1])["vectors"]["mini"][0]
    lines[1] = lines[1].replace(f'"mini": [{number!r}', f'"mini": [{number * 10!r}e-1')
    made.path("qdrant.jsonl").write_text("".join(lines), encoding="utf-8")


def number_of_sparse(made: Made) -> None:
    _replace(made, "sparse.jsonl", "0.25", "25e-2")


def escaped_text(made: Made) -> None:
    _replace(made, "texts.json", '\\"three\\"', "\\u0022three\\u0022")


def another_digit(made: Made) -> None:
    def change(records: list) -> None:
        vector = records[0]["vectors"]["mini"]
        vector[0] = math.nextafter(vector[0], 1.0)  # the same number in single precision

    made.lines("qdrant.jsonl", change)


def bytes_behind_an_array(made: Made) -> None:
    with made.path("embeddings.npy").open("ab") as file:
        file.write(b"12345")


def drop_an_array(made: Made) -> None:
    made.path("other_1.5b_embeddings.npy").unlink()


def coverage_gone(made: Made) -> None:
    def change(records: list) -> None:
        for record in records:
            record["payload"].pop("sparse_vector")

    made.lines("qdrant.jsonl", change)


def negative_norm(made: Made) -> None:
    np.save(made.path("other_1.5b_norms.npy"), np.array([1, -1, 1], np.float32))


def drop_a_norm(made: Made) -> None:
    np.save(made.path("other_1.5b_norms.npy"), np.ones(2, np.float32))


def norms_of_another_kind(made: Made) -> None:
    made.path("other_1.5b_norms.npy").write_bytes(b"none")


def false_count(made: Made) -> None:
    made.document("processing_summary.json", lambda v: v["rerank_run"].update(fallback_count=0))


def lists_of_nobody(made: Made) -> None:
    made.lines("rerank.jsonl", lambda r: r[0]["point_ids"].__setitem__(0, 99))


def over_the_ceiling(made: Made) -> None:
    def change(manifest: dict) -> None:
        manifest["dense_run"].update(device="cuda:0", peak_bytes=12_000_000_001)

    made.document("processing_summary.json", change)


def trec(made: Made, content: str, change: Callable[[list[list[str]]], None]) -> None:
    path = made.path(content)
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    change(lines)
    path.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")


def fused_names_an_unknown_chunk(made: Made) -> None:
    trec(made, "fused.trec", lambda lines: lines[0].__setitem__(2, "nobody"))


def reranked_names_an_unknown_chunk(made: Made) -> None:
    trec(made, "reranked.trec", lambda lines: lines[0].__setitem__(2, "nobody"))


def fused_has_a_wrong_rank(made: Made) -> None:
    trec(made, "fused.trec", lambda lines: lines[0].__setitem__(3, "7"))


def reranked_lists_change_places(made: Made) -> None:
    def change(lines: list[list[str]]) -> None:
        lines[0][2], lines[1][2] = lines[1][2], lines[0][2]

    trec(made, "reranked.trec", change)


def fused_scores_rise(made: Made) -> None:
    trec(made, "fused.trec", lambda lines: lines[1].__setitem__(4, "99.5"))


def a_trec_line_is_cut_off(made: Made) -> None:
    trec(made, "fused.trec", lambda lines: lines[0].pop())


def a_trec_line_is_gone(made: Made) -> None:
    trec(made, "reranked.trec", lambda lines: lines.pop())


def a_reranked_list_names_another_chunk(made: Made) -> None:
    made.lines("rerank.jsonl", lambda r: r[0]["chunk_ids"].__setitem__(0, "nobody"))


CASES: list[tuple[Callable[[Made], None], str, str]] = [
    (rename_payload_key, "bundle_format", "line 2, payload: key 'text_preview'"),
    (rename_metadata_key_everywhere, "bundle_format", "item 1: key 'qdrant_collection' is missing"),
    (rename_statistic, "bundle_format", "key 'model_config': key 'max_tokens' is missing"),
    (change_type, "bundle_format", "line 3, payload, key 'full_text_length': expected an integer from 0 up, found str"),
    (change_type_in_loader_key, "bundle_format", "item 2, key 'qdrant_collection': expected a string, found int"),
    (change_id_type, "bundle_format", "line 1, key 'id': expected an integer"),
    (reorder_names, "bundle_format", "line 1, payload"),
    (reorder_keys, "bundle_format", "keys were reordered"),
    (new_key_before_old_ones, "bundle_format", "comes after a key that v4.0 does not have"),
    (reorder_a_list_of_the_chunk, "row_alignment", "chunk row 2: metadata key 'tags' is not what the chunk has"),
    (reorder_a_list_of_the_chunk, "v40_parity", "record 2, key 'payload', key 'tags', position 0"),
    (change_a_value_everywhere, "v40_parity", "record 1, key 'payload', key 'modal_hint'"),
    (drop_a_point, "row_alignment", "chunk row 2 is missing in qdrant.jsonl"),
    (drop_metadata, "row_alignment", "global_chunk_id 1, expected 0"),
    (drop_a_sparse_record, "row_alignment", "chunk row 2 is missing in sparse.jsonl"),
    (drop_a_record_everywhere, "row_alignment", "chunk row 2 is missing in qdrant.jsonl"),
    (shift_array, "row_alignment", "chunk row 0: the vector of mini"),
    (shift_companion_vectors, "row_alignment", "chunk row 0: the vector of other-1.5b"),
    (shift_dense_everywhere, "row_alignment", "not the one that was encoded for this chunk"),
    (shift_texts, "row_alignment", "chunk row 0: text_preview"),
    (shift_sparse, "row_alignment", "chunk row 0: indices"),
    (nan_in_array, "vectors_finite_and_unit", "_embeddings.npy, row 1: is not finite"),
    (nan_in_point, "vectors_finite_and_unit", "line 2: a dense vector"),
    (nan_in_sparse, "vectors_finite_and_unit", "_sparse.jsonl, line 2"),
    (longer_vector, "vectors_finite_and_unit", "row 0: has norm 1.5"),
    (negative_norm, "vectors_finite_and_unit", "_other_1.5b_norms.npy, row 1: -1.0"),
    (drop_a_norm, "vectors_finite_and_unit", "_other_1.5b_norms.npy: expected 3 numbers of float32, found [2]"),
    (norms_of_another_kind, "vectors_finite_and_unit", "_other_1.5b_norms.npy: cannot be read"),
    (bytes_behind_an_array, "vectors_finite_and_unit", "_embeddings.npy: has 5 bytes behind its numbers"),
    (shift_array, "v40_parity", "_embeddings.npy: has other bytes than in the other bundle"),
    (drop_an_array, "v40_parity", "_other_1.5b_embeddings.npy: is missing"),
    (text_of_a_number, "bundle_format", "_qdrant.jsonl, record 0: is not as v4.0 writes it"),
    (number_of_metadata, "bundle_format", "_metadata.json, record 1: is not as v4.0 writes it"),
    (number_of_a_vector, "bundle_format", "_qdrant.jsonl, record 1: is not as v4.0 writes it"),
    (number_of_sparse, "bundle_format", "_sparse.jsonl, record 1: is not as v4.0 writes it"),
    (escaped_text, "bundle_format", "_texts.json, record 2: is not as v4.0 writes it"),
    (text_of_a_number, "v40_parity", "_qdrant.jsonl, record 0: is not as v4.0 writes it"),
    (another_digit, "v40_parity", "record 0, key 'vectors', key 'mini', position 0"),
    (rename_statistic, "v40_parity", "_stats.json, key 'model_config', key 'max_tokens': is missing"),
    (drop_a_record_everywhere, "v40_parity", "has fewer records than the other bundle"),
    (coverage_gone, "sparse_coverage", "0 of 3 chunks have a sparse vector"),
    (false_count, "rerank_fallbacks", "fallback_count of the manifest is 0"),
    (lists_of_nobody, "row_alignment", "_rerank.jsonl: names points that are not there"),
    (fused_names_an_unknown_chunk, "row_alignment", "_fused.trec: 1 lines are not the candidates"),
    (reranked_names_an_unknown_chunk, "row_alignment", "_reranked.trec: 1 lines are not the candidates"),
    (fused_has_a_wrong_rank, "row_alignment", "_fused.trec: expected ranks from 1"),
    (reranked_lists_change_places, "row_alignment", "_reranked.trec: 2 lines are not the candidates"),
    (fused_scores_rise, "row_alignment", "_fused.trec: expected falling scores"),
    (a_trec_line_is_cut_off, "row_alignment", "_fused.trec: expected lines of 6 columns"),
    (a_trec_line_is_gone, "row_alignment", "_reranked.trec: has"),
    (a_reranked_list_names_another_chunk, "row_alignment", "_rerank.jsonl: names chunk row"),
    (over_the_ceiling, "memory_ceiling", "dense: 12.000 GB on cuda:0"),
]


@pytest.mark.parametrize(("mutate", "gate", "words"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES])
def test_every_mutation_is_caught_by_its_gate(
    mutate: Callable[[Made], None], gate: str, words: str, tmp_path: Path
) -> None:
    made = everything(tmp_path / "on")
    sound = made.copy(tmp_path / "sound")
    mutate(made)
    result = made.judge(against=sound)[gate]
    assert result.failed
    assert any(words in sentence for sentence in result.problems), result.problems


@pytest.mark.parametrize(
    "mutate", [drop_a_point, shift_array, shift_texts, shift_sparse, nan_in_array, rename_statistic]
)
def test_a_broken_bundle_is_caught_without_the_chunks_too(mutate: Callable[[Made], None], tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    mutate(made)
    assert failed(Made(made.folder, None).judge())
