"""How candidates came to be, in words: what was tuned is traced to what it was tuned from."""

from __future__ import annotations

from collections.abc import Mapping

PRESET, FOUND, OWN = "preset:", "found:", "own:"
_TUNED = ("refine:", "refined:")
_WORDS = {
    "s3": "S^3 proposal",
    "evolution": "evolution's child",
    "random": "random member",
    "warm-start": "warm start",
    "warm-start-refined": "warm start, tuned before",
}


def tuned_from(origin: str) -> str:
    """Hash of the candidate that one was tuned from; empty where it was not tuned."""
    origin = origin.removeprefix(FOUND)
    return origin.partition(":")[2] if origin.startswith(_TUNED) else ""


def told_origin(origin: str, origins: Mapping[str, str]) -> str:
    """An origin in words, as `tuned from analytic:ddim/karras`; `origins` are those of candidates by hash.

    A start that is not among them stays a hash.
    """
    tuned, origin, seen = 0, origin.removeprefix(FOUND), set[str]()
    while start := tuned_from(origin):
        tuned += 1
        if start not in origins or start in seen:
            return "tuned from " * tuned + start
        seen.add(start)
        origin = origins[start]
    return "tuned from " * tuned + _WORDS.get(origin, origin)


def stock_name(origin: str) -> str:
    """Name of the preset (solver and grid) that a candidate is; empty where it is none."""
    origin = origin.removeprefix(FOUND)
    return origin.removeprefix(PRESET) if origin.startswith(PRESET) else ""


def is_stock(origin: str) -> bool:
    """Whether it is a preset, or the model's own scheduler."""
    return origin.startswith((PRESET, OWN))
