"""Cut a folder of documents into chunk records that the primary dense model can read whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_assets.collection.chunk_text import CHARACTERS_PER_TOKEN
from ensemble_assets.collection.readers.formats import documents_below, files_left
from ensemble_assets.collection.readers.input_files import cannot_read
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import InputError, SettingsError
from ensemble_assets.documents.sections import READERS, Section

try:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
except ImportError:
    raise SettingsError("cutting documents needs more packages: pip install 'ensemble-assets[documents]'") from None

FILE_NAME = "documents.jsonl"
_NAMED_FAULTS = 5
"""Documents that are named where none can be read: mostly all have the same fault."""


@dataclass(frozen=True)
class Cutting:
    """How texts are cut.

    Attributes:
        count: counts the tokens of a text.
        tokens: most tokens of a chunk. It has at most four times as many characters, more would be cut in the bundle.
        overlap: most tokens at the start of a chunk that are also the end of the one before, in the same section.
        room_for_headings: leave room for the headings, which ``chunks.headings`` puts before the text.
    """

    count: Callable[[str], int]
    tokens: int
    overlap: int
    room_for_headings: bool = False

    def size(self, text: str) -> int:
        """Measure a text in tokens, of which each has at most four characters.

        Tokens of a text that is too long by its characters are not counted: the splitter measures the whole rest of a
        document over and over.
        """
        by_characters = -(-len(text) // CHARACTERS_PER_TOKEN)
        return by_characters if by_characters > self.tokens else max(self.count(text), by_characters)

    def parts(self, section: Section) -> list[str]:
        """Cut a section between paragraphs, rows, sentences or words, whichever are the largest that fit.

        The first part begins with the section's heading. A heading of more than half a chunk may make it longer.
        """
        above = self.size(" > ".join(section.path)) if self.room_for_headings else 0
        room = max(self.tokens // 2, self.tokens - above - self.size(section.head) - 1)
        kind = MarkdownSplitter if section.markdown else TextSplitter
        first, *rest = kind.from_callback(self.size, room, min(self.overlap, room - 1)).chunks(section.text) or [""]
        whole = "\n\n".join(filter(None, [section.head, first]))
        return [whole, *rest] if whole else []


@dataclass
class Written:
    """The result: documents and chunks in numbers, documents without any text by name, and faults of the unread."""

    file: Path
    documents: int = 0
    chunks: int = 0
    empty: list[str] = field(default_factory=list)
    unread: list[InputError] = field(default_factory=list)


def cut_folder(folder: Path, into: Path, cutting: Cutting, *, follow_links: bool = False) -> Written:
    """Write the chunks of all documents below ``folder`` to ``documents.jsonl`` in the collection's folder ``into``.

    The file is replaced as a whole. A document that cannot be read does not stop the others. If none can be read, or
    none is there, that is an ``InputError``, and the file stays as it was. A link out of the folder is a document that
    cannot be read, unless ``follow_links``: a corpus from elsewhere must not read this machine's other files.
    """
    paths = sorted((relative, path) for relative, path in documents_below(folder) if path.suffix.lower() in READERS)
    if not paths:
        there = files_left(folder, READERS)[0]
        instead = f", but {there}" if there else ""
        raise InputError(folder.name, f"has no document: none of {', '.join(READERS)}{instead}", "Give another folder")
    written = Written(into / FILE_NAME)
    with atomic_write(written.file) as file:
        for relative, path in paths:
            if not (follow_links or path.resolve().is_relative_to(folder.resolve())):
                remedy = "Copy the document, or set chunks.follow_links=on"
                written.unread.append(InputError(relative, "is behind a link out of the folder", remedy))
                continue
            try:
                records = list(_records(relative, path, cutting))
            except InputError as error:
                written.unread.append(error)
                continue
            except RecursionError:
                written.unread.append(InputError(relative, "is nested too deeply to be read", "Flatten it"))
                continue
            file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
            written.chunks += len(records)
            written.documents += 1
            written.empty += [] if records else [relative]
        if not written.documents:
            named = " ".join(f"{error}." for error in written.unread[:_NAMED_FAULTS])
            raise InputError(folder.name, f"has {len(written.unread)} document(s), and none can be read", named)
        if not written.chunks:
            raise InputError(folder.name, "has documents without any text", "Give another folder")
    return written


def _records(relative: str, path: Path, cutting: Cutting) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise cannot_read(relative, error) from None
    for section in READERS[path.suffix.lower()](raw, relative):
        for place, text in enumerate(cutting.parts(section)):
            own = section.given_id + (f":{place}" if place else "")
            yield {
                **section.more,
                "id": own if section.given_id else f"{relative}:{number}",
                "text": text,
                **({"heading_text": section.path[-1], "section_path": section.path} if section.path else {}),
                "source_file": relative,
                "token_count": cutting.count(text),
            }
            number += 1
