"""What a study found beyond what is stock, as it was said when its report was made."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fewstep.storage.records import EventRecord

VERDICT = "verdict"
"""Events of this kind say it in one line, for the `nfe` among their data."""


def told_verdicts(events: Iterable[EventRecord]) -> dict[int, str]:
    """The latest line of each number of calls, in rising order."""
    known: dict[int, str] = {}
    for event in sorted(events, key=lambda e: e.order):
        if event.kind == VERDICT and (nfe := _nfe(event.data_json)) is not None:
            known[nfe] = event.message
    return dict(sorted(known.items()))


def _nfe(text: str) -> int | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    nfe = data.get("nfe") if isinstance(data, dict) else None
    return nfe if isinstance(nfe, int) else None
