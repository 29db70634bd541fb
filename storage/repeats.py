"""Which rows of a table count: of those that agree on what identifies them, the one that the record's rule prefers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewstep.storage.records import Record

_ODD = np.uint64(0x9E3779B97F4A7C15)


def counting(table: pa.Table, record: type[Record]) -> NDArray[np.bool_]:
    """A mask over the rows, which have the columns `record.deciding()`, as text or as dictionaries of it."""
    if any(_all_differ(table.column(name)) for name in record.unique[::-1]):
        return np.ones(table.num_rows, dtype=np.bool_)
    table = table.select(list(record.deciding())).cast(pa.schema([record.schema.field(n) for n in record.deciding()]))
    keys = table.select(list(record.unique)).to_pandas()
    rule = record.preferred
    worse = pc.not_equal(table.column(rule.column), rule.value).to_numpy() if rule else np.zeros(0, np.bool_)
    if rule is None or not worse.any():
        repeated = keys.duplicated(keep="last" if record.latest_wins else "first")
        return np.asarray(~repeated, dtype=np.bool_)
    time = table.column(rule.time).cast(pa.int64()).to_numpy()
    # A stable sort: rows of equal rank stay in the order of writing, and the first of them counts.
    ranked = np.lexsort((np.where(worse, -time, 0), worse))
    keep = np.empty(len(ranked), dtype=np.bool_)
    keep[ranked] = ~keys.iloc[ranked].duplicated()
    return keep


def _all_differ(column: pa.ChunkedArray) -> bool:
    """Whether no value is there twice."""
    if pa.types.is_dictionary(column.type):
        return len(column) < 2
    numbers = _numbers(column) if pa.types.is_string(column.type) else None
    if numbers is None:
        return bool(pc.count_distinct(column).as_py() == len(column))
    numbers.sort()
    return bool((numbers[1:] != numbers[:-1]).all())


def _numbers(column: pa.ChunkedArray) -> NDArray[np.uint64] | None:
    """A number of each text, equal for equal ones; None unless all are of one length, some eights of bytes.

    Content addresses are: to sort their numbers takes a tenth of the time that a table of texts takes.
    """
    found = [np.zeros(0, dtype=np.uint64)]
    width = 0
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, starts, data = chunk.buffers()
        ends = np.frombuffer(starts, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths = np.diff(ends)
        width = width or int(lengths[0])
        if chunk.null_count or not width or width % 8 or (lengths != width).any():
            return None
        words = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]].reshape(len(chunk), width).view(np.uint64)
        number = words[:, 0].copy()
        for place in range(1, width // 8):
            number = number * _ODD + words[:, place]
        found.append(number)
    return np.concatenate(found)
