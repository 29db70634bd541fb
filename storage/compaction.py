"""Which small files to merge, so that appending stays cheap and the file count stays low.

Like a binary counter: a merge takes the newest files and, going back, every file that is no larger
than what is taken so far. A row is then rewritten about log2(SEALED_ROWS / small) times in its life,
never with the whole table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.storage.parts import Part

SEALED_ROWS = 8192
SEALED_BYTES = 32 * 2**20
# However large, a file of fewer rows is merged: moments of 2,048 features are 17 MB a row.
FEWEST_ROWS = 16
MERGE_BYTES = 288 * 2**20


@dataclass(frozen=True)
class Piece:
    """A part as compaction sees it; `fixed` ones (damaged, or of a newer version) are left alone."""

    part: Part
    rows: int
    fixed: bool = False

    @property
    def small(self) -> bool:
        """Whether it may still be merged into a larger file."""
        few = self.rows < FEWEST_ROWS and 2 * self.part.size <= MERGE_BYTES
        return not self.fixed and self.rows < SEALED_ROWS and (self.part.size < SEALED_BYTES or few)


def choose_merge(pieces: Sequence[Piece]) -> list[Part]:
    """The neighbouring parts to merge next by the tier rule; empty when no two small ones adjoin."""
    group: list[Piece] = []
    rows = size = 0
    for piece in reversed(max(_groups(pieces), key=len, default=[])):
        if len(group) > 1 and (piece.rows > rows or size + piece.part.size > MERGE_BYTES):
            break
        group.append(piece)
        rows += piece.rows
        size += piece.part.size
    return [piece.part for piece in reversed(group)] if len(group) > 1 else []


def choose_all(pieces: Sequence[Piece]) -> list[list[Part]]:
    """Every group of neighbouring small parts, cut so that a merge stays within SEALED_ROWS or so."""
    merges: list[list[Part]] = []
    for group in _groups(pieces):
        merge: list[Part] = []
        rows = size = 0
        for piece in group:
            if merge and size + piece.part.size > MERGE_BYTES:
                merges.append(merge)
                merge, rows, size = [], 0, 0
            merge.append(piece.part)
            rows += piece.rows
            size += piece.part.size
            if rows >= SEALED_ROWS or (size >= SEALED_BYTES and rows >= FEWEST_ROWS):
                merges.append(merge)
                merge, rows, size = [], 0, 0
        merges.append(merge)
    return [merge for merge in merges if len(merge) > 1]


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    # Only neighbours may be merged: the merged file takes the place of all of them in the order.
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece.small:
            groups[-1].append(piece)
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group]
