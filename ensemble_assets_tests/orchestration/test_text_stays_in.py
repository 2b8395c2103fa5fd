"""No query gets out of a run: ids that are texts, models and tokenizers that quote what they were given, every byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.compute.tokens import tokenizer
from ensemble_assets.export.query_leaks.gate import Place, no_raw_queries, text_place
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, fast_factories
from ensemble_assets_tests.orchestration.stored_text import run_places, with_base64, written_places

ASKED = "how do I dispute a charge on my late mother's credit card"
PERSON = "anna-lena.schmidt+rag@example.org"
QUERIES = (
    {"query_id": ASKED, "text": ASKED},
    {"query_id": PERSON, "text": "where is the violin that I ordered for my daughter"},
    {"query_id": "q3", "text": "what does the orchard behind the glacier smell of"},
)
SOUGHT = [*(Query(f"text {n}", query["text"]) for n, query in enumerate(QUERIES)), Query("e-mail", PERSON)]
MAKERS = {"dense": dense_double, "sparse": sparse_double, "rerank": rerank_double}


def quoting(kind: str) -> Any:
    """A factory of models that raise ``ValueError(text)`` on everything."""

    def fault(row: int) -> bool:
        raise ValueError(f"cannot embed: {QUERIES[0]['text']!r} of {PERSON}")

    return MAKERS[kind](fault=fault)


class QuotingTokenizer:
    """Raises ``ValueError(text)`` on every text but those that templates are read from."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode_batch_fast(self, texts: list[str], **_: Any) -> Any:
        raise ValueError(f"cannot tokenise {texts} for {PERSON}")

    def encode(self, *texts: str, **named: Any) -> Any:
        if all(len(text) == 1 for text in texts):
            return self._inner.encode(*texts, **named)
        raise ValueError(f"cannot tokenise {ASKED}")


@contextmanager
def everything_of(pipeline: Pipeline) -> Iterator[tuple[dg.ExecuteInProcessResult, list[Place]]]:
    """Runs the job on an instance with real storage; gives all that was written, the artefact ``queries`` apart."""
    (pipeline.root / "corpora" / "notes" / "queries.jsonl").write_text(
        "".join(json.dumps(query) + "\n" for query in QUERIES)
    )
    (pipeline.root / "corpora" / "notes" / "qrels.tsv").unlink()
    home = pipeline.root / "dagster"
    home.mkdir()
    job = build_definitions(computing=pipeline.computing).resolve_job_def(RETRIEVAL_BUNDLE)
    overrides = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home), overrides=overrides) as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        config = {**pipeline.config(), "loggers": {"console": {"config": {"log_level": "DEBUG"}}}}
        result = job.execute_in_process(
            partition_key="notes", instance=instance, run_config=config, raise_on_error=False
        )
        yield result, [*run_places(instance, result.run_id), *_written(pipeline.root)]


def _written(root: Path) -> Iterator[Place]:
    for place in written_places(root, ("dagster", "output", "cache")):
        if "/queries/" not in f"/{place.name}":
            yield place


def assert_nothing_got_out(places: list[Place], *more: str) -> None:
    places = [*places, *(text_place(f"captured output {n}", [text]) for n, text in enumerate(more))]
    result = no_raw_queries(SOUGHT, [deeper for place in places for deeper in with_base64(place)])
    assert result.passed, result.problems
    assert int(result.numbers["bytes_searched"]) > 50_000
    assert int(result.numbers["places"]) > 12


def test_ids_that_are_texts_or_addresses_are_hashed_everywhere(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    with everything_of(pipeline) as (result, places):
        assert result.success
        assert_nothing_got_out(places, *capfd.readouterr())
        shown = [place for place in places if "event storage" in place.name or place.name.endswith(".db")]
        assert len(shown) >= 2, "Dagster's event storage was there to be searched"
    lines = (pipeline.root / "output/notes/ultimate_embeddings_v4_rerank.jsonl").read_text().splitlines()
    ids = [json.loads(line)["query_id"] for line in lines]
    assert ids[2] == "q3"
    assert all(identity.startswith("q-") for identity in ids[:2])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_that_quotes_its_input_gets_nothing_out(
    kind: str, pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline.computing = Computing({**fast_factories(), kind: quoting(kind)})
    with everything_of(pipeline) as (result, places):
        failed = [e.step_failure_data.error.to_string() for e in result.all_events if e.is_step_failure]
        assert result.success is (kind != "dense"), f"only the primary dense model is needed: {failed}"
        assert_nothing_got_out(places, *capfd.readouterr())


def test_a_tokenizer_that_quotes_its_input_gets_nothing_out(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load = tokenizer._load_tokenizer
    monkeypatch.setattr(tokenizer, "_load_tokenizer", lambda files: QuotingTokenizer(load(files)))
    monkeypatch.setattr(tokenizer, "_BY_CONTENT", {})
    tokenizer.load_vocabulary.cache_clear()
    with everything_of(pipeline) as (result, places):
        assert not result.success
        failures = [e.step_failure_data.error for e in result.all_events if e.is_step_failure]
        assert any("the tokenizer failed on text 0 of its list (ValueError)" in str(e.to_string()) for e in failures)
        assert_nothing_got_out(places, *capfd.readouterr())
    tokenizer.load_vocabulary.cache_clear()


def test_the_search_of_these_tests_sees_a_text_that_got_out(pipeline: Pipeline) -> None:
    with everything_of(pipeline) as (_, places):
        planted = text_place("planted", [json.dumps({"id": PERSON})])
        assert no_raw_queries(SOUGHT, [*places, planted]).failed
        hidden = text_place("hidden", [base64.b64encode(ASKED.encode()).decode()])
        with pytest.raises(AssertionError, match="base64 in hidden"):
            assert_nothing_got_out([*places, hidden])
