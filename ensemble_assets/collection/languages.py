"""Recognise texts that are not in English, by their script or by their most frequent words; know unspaced scripts.

It says nothing about a text of few words, or of names, numbers and code: such a text counts as English.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_UNSPACED_RANGES = (  # Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer and Yi, without their punctuation
    range(0x0E00, 0x10A0),
    range(0x1780, 0x1800),
    range(0x2E80, 0x3000),
    range(0x3005, 0x3008),
    range(0x3040, 0x30FB),
    range(0x30FC, 0xAC00),
    range(0xF900, 0xFB00),
    range(0x20000, 0x40000),
)

UNSPACED = "".join(f"{chr(block.start)}-{chr(block.stop - 1)}" for block in _UNSPACED_RANGES)
"""Characters of the scripts without blanks between words, for a class of a regular expression of Python or Polars."""

_LETTERS_READ = 600
"""Characters of a text that are looked at: some hundred words, of which a fifth are function words."""

_LEAST_WORDS = 10
"""Words of a text in Latin script whose language is asked for: names and headings have fewer."""

_LEAST_HITS, _LEAST_SHARE = 3, 0.05
"""Function words that a text must have to be taken for a language: running text has ten times this share of such
words."""

_LEAST_ACCENTED, _OTHER = 0.1, "another language"
"""Least share of words with an accent in a text that counts as another language, for languages without a list."""

_SCRIPTS = {
    "ARABIC": "Arabic", "ARMENIAN": "Armenian", "BENGALI": "Bengali", "CJK": "Chinese or Japanese",
    "CYRILLIC": "Cyrillic", "DEVANAGARI": "Devanagari", "ETHIOPIC": "Ethiopic", "GEORGIAN": "Georgian",
    "GREEK": "Greek", "GUJARATI": "Gujarati", "HANGUL": "Korean", "HEBREW": "Hebrew", "HIRAGANA": "Chinese or Japanese",
    "KANNADA": "Kannada", "KATAKANA": "Chinese or Japanese", "KHMER": "Khmer", "LAO": "Lao", "MALAYALAM": "Malayalam",
    "MYANMAR": "Burmese", "SINHALA": "Sinhala", "TAMIL": "Tamil", "TELUGU": "Telugu", "THAI": "Thai",
}  # fmt: skip
"""Names of scripts for people, by the first word of their letters' Unicode names."""

_ENGLISH_WORDS = "the of and to in is that for with as are this be by it from or an was which can not if on at"
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "Czech": "že se na je který jsou nebo jako pro byl při také však podle",
        "Danish or Norwegian": "og det som er ikke til på av af med har kan den eller fra blev ble",
        "Dutch": "het een van en niet zijn worden voor met dat wordt ook naar bij deze",
        "Finnish": "ja on ei että se ovat tai myös kun joka mutta kuin oli",
        "French": "le la les des et est une dans que pour pas du sur sont qui avec ou ce au",
        "German": "der die das und nicht ist ein eine mit von den zu auf für sich dem auch wird oder werden",
        "Hungarian": "az és hogy nem egy ez vagy is meg csak van volt mint",
        "Indonesian or Malay": "yang dan di dengan untuk dari tidak ini adalah pada dalam atau",
        "Italian": "il di che non per una sono della con del gli è nel più anche",
        "Polish": "w i na się nie jest do że oraz przez który jak lub są",
        "Portuguese": "de que não uma para com os em do da ao são mais ou é",
        "Romanian": "și în nu este care pentru cu din sau sunt că mai",
        "Spanish": "el los las una que por con para del es se no como más o en",
        "Swedish": "och det som är inte att en på för med av har den eller till",
        "Turkish": "ve bir bu için ile olarak değil daha olan gibi çok da",
        "Vietnamese": "và của là không các được trong cho một có này",
    }.items()
}
"""Frequent words of languages in Latin script. Few of them are frequent in English too."""
FUNCTION_WORDS = _ENGLISH.union(*_FUNCTION_WORDS.values())
"""Words that say little about a text's subject."""

_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class ForeignTexts:
    """Texts of a sample that are not in English.

    Attributes:
        texts: their number.
        of: texts of the sample.
        writing: the most frequent script or language among them, in words for people.
    """

    texts: int
    of: int
    writing: str

    @property
    def are_most(self) -> bool:
        """Whether more than half of the sample is not in English."""
        return 2 * self.texts > self.of

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def foreign_texts(sample: Sequence[str]) -> ForeignTexts:
    """Count the texts of a sample that are not in English."""
    counts = Counter(writing for text in sample if (writing := foreign_writing(text)))
    most = counts.most_common(1)
    return ForeignTexts(counts.total(), len(sample), most[0][0] if most else "")


def foreign_writing(text: str) -> str:
    """Name the script of a text that is not Latin, or its language if that is not English; empty where neither is."""
    text = text[:_LETTERS_READ]
    return _script(text) or _language(_WORD.findall(text.lower()))


def _script(text: str) -> str:
    letters = [character for character in text if character.isalpha()]
    others = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters if letter > "\u024f")
    named = Counter[str]()
    for name, count in others.items():
        if name in _SCRIPTS:
            named[_SCRIPTS[name]] += count
    return named.most_common(1)[0][0] if 2 * named.total() > len(letters) else ""


def _language(words: Sequence[str]) -> str:
    if len(words) < _LEAST_WORDS:
        return ""
    english = sum(word in _ENGLISH for word in words)
    hits = {language: sum(word in frequent for word in words) for language, frequent in _FUNCTION_WORDS.items()}
    language = max(hits, key=lambda name: hits[name])
    if hits[language] >= max(_LEAST_HITS, _LEAST_SHARE * len(words), 2 * english):
        return language
    accented = sum(not word.isascii() for word in words)
    return _OTHER if accented >= max(_LEAST_HITS, _LEAST_ACCENTED * len(words), 2 * english) else ""


def is_unspaced(character: str) -> bool:
    """Return whether a character is of a script without blanks between words."""
    return any(ord(character) in block for block in _UNSPACED_RANGES)
