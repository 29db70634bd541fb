"""Server-sent events: which studies changed, told to pages that are open."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.concurrency import run_in_threadpool

from fewstep.dashboards.web.places import Places
from fewstep.errors import FewstepError

PAUSE = 1.0
"""Seconds between two looks at the folders."""

_BEAT = 15


def stamps(places: Places) -> dict[str, str]:
    """What each study's files are like, by its slug; those that cannot be read have none."""
    found = {}
    for entry in places.find()[0]:
        try:
            found[entry.slug] = entry.stamp()
        except (FewstepError, OSError):
            continue
    return found


def mark(found: dict[str, str], study: str = "") -> str:
    """What one study's files are like, or all of them."""
    return found.get(study, "") if study else hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


async def changes(
    places: Places, gone: Callable[[], Awaitable[bool]], study: str = "", since: str = "", pause: float = PAUSE
) -> AsyncIterator[str]:
    """An event `changed` with the slugs of studies that are new or were written to, each time; until the page is gone.

    A page says by its `mark` what it shows: what was written since then is told at once. A comment now and then keeps
    the line open.
    """
    known = await run_in_threadpool(stamps, places)
    yield f"retry: 3000\nevent: open\ndata: {len(known)}\n\n"
    if since and mark(known, study) != since:
        yield f"event: changed\ndata: {json.dumps([study] if study else sorted(known))}\n\n"
    quiet = 0.0
    while not await gone():
        await asyncio.sleep(pause)
        now = await run_in_threadpool(stamps, places)
        changed = sorted(slug for slug in {*now, *known} if now.get(slug) != known.get(slug))
        known, quiet = now, 0.0 if changed else quiet + pause
        if changed:
            yield f"event: changed\ndata: {json.dumps(changed)}\n\n"
        elif quiet >= _BEAT:
            quiet = 0.0
            yield ": still here\n\n"
