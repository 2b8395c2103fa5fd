"""The collection that every model of the zoo reads: 42 chunks, 8 queries, and the text that vocabularies learn from."""

from __future__ import annotations

import json
from pathlib import Path

COLLECTION = "zoo"
"""Name of the collection's folder and partition."""

_SENTENCES = (
    "The river Danube rises in the Black Forest and flows through ten countries to the sea.",
    "A violin has four strings, tuned in fifths, and is played with a bow of horsehair.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "The glacier lost twelve metres of ice between 1990 and 2004, as satellite data show.",
    "Python reads a source file line by line and compiles it to byte code before it runs.",
    "An orchard of apple trees needs bees, late frost is its worst enemy in spring.",
    "Steam engines convert heat into work; Watt's condenser saved three quarters of the coal.",
    "Market prices rose by 3.5 % in March, while wages stayed where they had been.",
    "The harbour was dredged in 1887 so that ships of deeper draught could berth there.",
    "A hash table finds an entry in constant time on average, and in linear time at worst.",
    "Vitamin C is lost when vegetables are boiled for long, less so when they are steamed.",
    "The court held that the contract was void because no price had been agreed upon.",
    "Lanterns of paper were hung along the canyon path for the midsummer festival.",
    "Antibiotics do not help against viruses, yet they are often asked for in winter.",
)

_SHORT = ("Yes.", "42", "?", "Danube", "ok ok", "a")

_UNICODE = (
    "Die Straße führt über die Brücke nach Zürich, größer als früher.",
    "El río nace en la montaña y desemboca en el mar Mediterráneo.",
    "Река Дунай впадает в Чёрное море.",
    "東京は日本の首都です。人口は約千四百万人。",
    "\u202b\u0634\u0643\u0631\u0627\u202c and thanks \U0001f642\U0001f44d\U0001f3fd",
    "ﬁne ligatures, \u200bzero width, na\u00efve and nai\u0308ve, \uff26\uff35\uff2c\uff2c ½ №5",
)

_UPPER = ("THE RIVER DANUBE RISES IN THE BLACK FOREST.", "HASH TABLES Find An ENTRY In Constant TIME")

_CODE = (
    "def area(r):\n    if r < 0:\n        raise ValueError('negative')\n    return 3.14159 * r ** 2\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\t// running total\n}\n",
    '{"name": "harbour",\n  "depth": 12.5,\n  "open": true}',
    "SELECT  chunk_id,   text\nFROM chunks\nWHERE   length(text) > 100;",
)

QUERIES = (
    "where does the Danube rise",
    "How many strings does a violin have?",
    "hash table lookup time",
    "WHAT HELPS AGAINST VIRUSES",
    "def area",
    "人口",
    "x",
    "why did the harbour have to be dredged, when was that done, and which ships could berth there afterwards, "
    "given that market prices rose and the glacier had lost so much of its ice by then? " * 4,
)
"""Eight queries; the last one is longer than a query limit of 32 or 64 tokens."""


def _long(words: int, start: int) -> str:
    """Sentences in turn from ``start`` until there are ``words`` words."""
    text: list[str] = []
    turn = start
    while len(text) < words:
        text += f"{_SENTENCES[turn % len(_SENTENCES)]} ({turn})".split()
        turn += 3
    return " ".join(text[:words])


def chunk_texts() -> list[str]:
    """Make the 42 texts: short and long ones, other scripts, capitals, code, repetitions; no two are equal."""
    repeated = ["ice " * 60, "river river harbour. " * 30]
    middling = [_long(words, start) for words, start in ((60, 1), (90, 2), (130, 5), (180, 8), (240, 4))]
    beyond_window = [_long(words, start) for words, start in ((300, 6), (420, 9), (700, 11))]
    return [*_SENTENCES, *_SHORT, *_UNICODE, *_UPPER, *_CODE, *repeated, *middling, *beyond_window]


def training_lines() -> list[str]:
    """Lines that vocabularies learn from; scripts of a few chunks are left out, so that unknown words occur."""
    return [*_SENTENCES, *_SENTENCES, *_UPPER, *_CODE, *_UNICODE[:3], *QUERIES[:5], _long(300, 2)]


def write_collection(folder: Path) -> None:
    """Write the collection in the chunk file format, with its queries."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [{"text": text, "metadata": {"chunk_id": f"c{row:02d}"}} for row, text in enumerate(chunk_texts())]
    (folder / "zoo_chunks.json").write_text(json.dumps(chunks), encoding="utf-8")
    lines = [json.dumps({"query_id": f"q{row}", "text": text}) for row, text in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
