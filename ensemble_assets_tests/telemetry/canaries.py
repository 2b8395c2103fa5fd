"""Text that must never leave: names, addresses, numbers, keys and a whole query, and how to look for it."""

from __future__ import annotations

import base64
import json

CANARIES = (
    "Anna-Lena Schmidt",
    "anna.schmidt@example.org",
    "+49 151 2345 6789",
    "sk-live-51H8xQ2eZvKYlo2CabcdEFGH",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "how do I dispute a charge on my late mother's credit card",
    "Zürich, Bahnhofstraße 1",
)


def leaks(data: bytes, canaries: tuple[str, ...] = CANARIES) -> list[str]:
    """The canaries that ``data`` contains: plain, in any case, JSON-escaped, base64, or one of their longer words."""
    folded = data.decode("utf-8", "replace").casefold()
    found = []
    for canary in canaries:
        forms = {canary, json.dumps(canary)[1:-1], base64.b64encode(canary.encode()).decode().rstrip("=")[:-1]}
        forms |= {word for word in canary.replace(",", " ").split() if len(word) > 6}
        if any(form.casefold() in folded for form in forms):
            found.append(canary)
    return found
