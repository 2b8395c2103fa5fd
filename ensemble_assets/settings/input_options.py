"""Define the options of a run's input: chunks, the names of collections, queries."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator
from pydantic_core.core_schema import ValidationInfo

from ensemble_assets.common import defaults
from ensemble_assets.settings.section import Names, Section, Share, option, table_rows


class Chunks(Section):
    """How chunk files are read."""

    min_tokens: int = option(0, "Chunks with fewer tokens are skipped and counted. 50: as in version 4.0.", ge=0)
    searched: Literal["whole", "exported"] = option(
        "whole",
        "Text of a chunk that sparse vectors, BM25 and the reranker read. whole: all of it. exported: only "
        "the part that is embedded and exported.",
    )
    max_record_mb: int = option(64, "A record above this size is refused, in MB.", ge=1, le=1024)
    format: Literal["", "chunk_files", "beir", "jsonl", "parquet"] = option(
        "", "Format to read. Needed only if a folder has several."
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "A file that cannot be used. stop: an error that names all of them. skip: it is left out, counted and named, "
        "as in version 4.0.",
    )
    text_field: Names = option(
        (), "Fields of a record that are its text, joined by a blank line. Empty: text, else content and the like."
    )
    id_field: str = option("", "Field of a record that is its id. Empty: chunk_id, _id or id.")
    headings: Literal["off", "prepend"] = option(
        "off", "prepend: the headings above a chunk, or its title, stand before its text wherever the text is read."
    )
    title_field: str = option("", "Field that is put before the text. Empty: title in a corpus, none elsewhere.")
    metadata_fields: Names = option((), "Fields beside the text that are kept as metadata. Empty: all.")
    flat_records: Literal["keep", "legacy"] = option(
        "keep",
        "Records of chunk files without metadata. keep: their other keys are metadata, as in JSONL. legacy: left out, "
        "as in version 4.0.",
    )
    repeated_ids: Literal["number", "refuse"] = option(
        "number", "An id with two contents. number: #2 is appended and counted. refuse: an error that names all."
    )
    follow_links: bool = option(False, "Follow symbolic links that lead out of the collection's folder.")
    collection_priority: Share = option(0.5, "Exported as collection_priority.")


class Collections(Section):
    """Names of a collection in its points. Tables are lists of ``PATTERN=VALUE``; the first that fits counts."""

    naming: Literal["folder", "legacy"] = option(
        "folder",
        "qdrant_collection, hints and target in Qdrant. folder: the collection's own name. legacy: version 4.0's name, "
        "from collections.names.",
    )
    names: Names = option(
        (
            "*qdrant*=qdrant_ecosystem",
            "*sentence*=sentence_transformers",
            "*docling*=docling",
            "*fast_docs*=fast_docs",
            "*pydantic*=pydantic",
        ),
        "Names for naming legacy, by the folder's name in lower case with _ for - and blanks. Others stay so.",
    )
    priorities: Names = option(
        (),
        "collection_priority by qdrant_collection, 0 to 1; chunks.collection_priority where none fits. Empty: version "
        "4.0's with naming legacy.",
    )

    @field_validator("names", "priorities")
    @classmethod
    def _rows_have_values(cls, rows: Names, info: ValidationInfo) -> Names:
        for _, value in table_rows(rows):
            if info.field_name == "priorities" and not 0 <= float(value) <= 1:
                raise ValueError("a priority is 0 to 1")
        return rows


class Queries(Section):
    """Where queries and judgements come from."""

    file: str = option(
        "",
        "File of queries, see docs/inputs.md. Empty: queries beside the chunks, else queries derived from the chunks' "
        "headings.",
    )
    qrels: str = option("", "Judgements, see docs/inputs.md. Empty: qrels beside the chunks, if any.")
    split: str = option(
        "", "Split of queries and judgements beside the chunks. Empty: test, else dev, validation, train."
    )
    judged_only: bool = option(True, "With judgements: use only queries that have some.")
    ids_are_public: bool = option(
        False, "Query ids are not personal and are shown. Otherwise ids that look like text are hashed."
    )
    derived_limit: int = option(
        defaults.DERIVED_QUERIES, "Most queries derived from headings if there is no query file.", ge=1, le=100_000
    )
