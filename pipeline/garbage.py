"""Python's search for garbage, kept from what a long search will hold to its end.

It goes through everything that is alive, which takes tenths of a second in a process with torch, and grows with every
trial. What is alive after a while stays: it is set aside, and each look is at what is new.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Records between two times that what is alive is set aside.
EVERY = 500


@contextmanager
def settled(every: int = EVERY) -> Iterator[Callable[[], None]]:
    """Gives a function to be called after each record; at the end all is looked through again as before."""
    count = 0

    def note() -> None:
        nonlocal count
        count += 1
        if count % every == 0 and gc.isenabled():
            # What is garbage now must go first: what is set aside is never looked at.
            gc.collect()
            gc.freeze()

    try:
        yield note
    finally:
        if count >= every:
            gc.unfreeze()


@contextmanager
def without_collection() -> Iterator[None]:
    """While a search is made, nothing of it is garbage, and to look for some takes a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
