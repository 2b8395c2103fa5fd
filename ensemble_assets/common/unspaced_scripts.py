"""Know the scripts that write no blanks between words: Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer and Yi."""

from __future__ import annotations

_RANGES = (  # without their punctuation
    range(0x0E00, 0x10A0),
    range(0x1780, 0x1800),
    range(0x2E80, 0x3000),
    range(0x3005, 0x3008),
    range(0x3040, 0x30FB),
    range(0x30FC, 0xAC00),
    range(0xF900, 0xFB00),
    range(0x20000, 0x40000),
)

UNSPACED = "".join(f"{chr(block.start)}-{chr(block.stop - 1)}" for block in _RANGES)
"""The characters of these scripts, for a class of a regular expression; Python's and Polars' read it alike."""


def is_unspaced(character: str) -> bool:
    """Return whether a character is of a script without blanks between words."""
    return any(ord(character) in block for block in _RANGES)
