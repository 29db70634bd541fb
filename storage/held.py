"""Small files that this process wrote or read lately, in memory: what never changes need not be opened again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import pyarrow as pa

# What a column of a table takes besides its values.
COLUMN_BYTES = 1024


class Held:
    """Tables by whatever names their content, of `most` bytes together; the one not asked for longest goes first."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._tables: OrderedDict[Hashable, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> pa.Table | None:
        """The table of that name, where it is held."""
        with self._lock:
            if name in self._tables:
                self._tables.move_to_end(name)
            return self._tables.get(name)

    def put(self, name: Hashable, table: pa.Table) -> None:
        """Hold a table, unless it is larger than all that may be held."""
        with self._lock:
            if name in self._tables or _size(table) > self._most:
                return
            self._tables[name] = table
            self._bytes += _size(table)
            while self._bytes > self._most:
                self._bytes -= _size(self._tables.popitem(last=False)[1])

    def drop(self, name: Hashable) -> None:
        """Hold it no more: nobody will ask for it again."""
        with self._lock:
            if (table := self._tables.pop(name, None)) is not None:
                self._bytes -= _size(table)


def _size(table: pa.Table) -> int:
    return int(table.nbytes + COLUMN_BYTES * table.num_columns)
