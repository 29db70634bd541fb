"""Records that hold the few fields a search always needs; the bulk of them is read when it is asked for.

A search may have hundreds of thousands of them, and asks for the candidate of a handful. What was read stays in the
columns it was read in, what was just made is packed: a field is the same whichever way.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from fewstep.storage.records import Record

R = TypeVar("R", bound=Record)


class Rows:
    """Rows of a table that has every column of a kind of record."""

    def __init__(self, kind: type[Record], table: pa.Table) -> None:
        self._kind = kind
        self._columns = {name: table.column(name) for name in kind.schema.names}
        self._begins: dict[tuple[str, str], Sequence[bool]] = {}

    def value(self, name: str, row: int) -> Any:
        """A field of a row."""
        return self._kind.parsed(name, self._columns[name][row].as_py())

    def begins(self, name: str, text: str, row: int) -> bool:
        """Whether a column's text begins so in a row."""
        if (name, text) not in self._begins:
            self._begins[name, text] = pc.starts_with(self._columns[name], text).to_pylist()
        return self._begins[name, text][row]

    def quick(self, name: str) -> list[Any]:
        """A whole column; what is there many times is one object."""
        column = self._columns[name]
        if not pa.types.is_string(column.type):
            return list(column.to_pylist())
        found: list[Any] = []
        for chunk in column.dictionary_encode().chunks:
            texts = chunk.dictionary.to_pylist()
            found += [texts[i] for i in chunk.indices.to_pylist()]
        return found


class Packed:
    """The fields of one record, compressed."""

    __slots__ = ("_bytes",)

    def __init__(self, fields: dict[str, Any]) -> None:
        # Never leaves this process.
        self._bytes = zlib.compress(pickle.dumps(fields, pickle.HIGHEST_PROTOCOL))

    def value(self, name: str, row: int) -> Any:
        """A field."""
        return pickle.loads(zlib.decompress(self._bytes))[name]


def backed(kind: type[R], table: pa.Table) -> list[R]:
    """The records of rows that have every column: equal to `from_table`, but for what is read when it is asked for.

    A JSON column that does not hold JSON is then found out, with the same StorageError.
    """
    if any(table.column(column.name).null_count for column in kind.schema if not column.nullable):
        return kind.from_table(table)
    rows, names = Rows(kind, table), (*kind.quick, "_backing")
    made = [kind.__new__(kind) for _ in range(table.num_rows)]
    columns = [*map(rows.quick, kind.quick), [(rows, i) for i in range(len(made))]]
    for record, values in zip(made, zip(*columns, strict=True), strict=True):
        record.__dict__.update(zip(names, values, strict=True))
    return made


def packed(record: R) -> R:
    """The same record in a fraction of the memory."""
    if "_backing" in record.__dict__:
        return record
    values = dict(record.__dict__)
    made = type(record).__new__(type(record))
    made.__dict__.update({name: values.pop(name) for name in record.quick})
    # Most have none of some, and to see that nothing needs to be unpacked.
    made.__dict__.update({name: values.pop(name) for name in tuple(values) if values[name] == {}})
    made.__dict__["_backing"] = Packed(values), 0
    return made
