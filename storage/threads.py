"""Many files read at once: Arrow and the file system leave Python's lock alone while they work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
# Fewer are read sooner than threads are started.
FEW, MOST_THREADS = 8, 8


def mapped(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of each item, in their order; what it raises first is raised."""
    every = list(items)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    if len(every) < FEW or threads == 1:
        return [function(item) for item in every]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, every))
