"""What lives on is not looked through for garbage again, and garbage goes all the same."""

from __future__ import annotations

import gc
import weakref

from fewstep.pipeline.garbage import settled


class Node:
    """Something that may be garbage only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


def test_each_look_is_at_what_is_new_and_garbage_goes() -> None:
    before, kept, looked_at = gc.get_freeze_count(), list[Node](), list[int]()
    with settled(every=100) as note:
        for count in range(1_000):
            if count and count % 100 == 0:
                # Set aside just now, and what has come until the next time.
                looked_at.append(len(gc.get_objects()))
                kept += [Node() for _ in range(200)]
                looked_at.append(len(gc.get_objects()))
            note()
        assert gc.get_freeze_count() > before + len(kept)
        lost = weakref.ref(Node())
        for _ in range(100):
            note()
        assert lost() is None
    assert gc.get_freeze_count() == 0
    assert len(kept) == 1_800
    assert max(looked_at) < 1_500


def test_a_short_search_leaves_the_collector_alone() -> None:
    gc.freeze()
    try:
        held = gc.get_freeze_count()
        with settled() as note:
            note()
        assert gc.get_freeze_count() == held
    finally:
        gc.unfreeze()
