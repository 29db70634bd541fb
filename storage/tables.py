"""A table of records as a directory of Parquet files: append, read, compact.

Rows are identified by the record's unique columns. Whatever is delivered twice, merged halfway or
written again after a crash is therefore read once: the row that its record's rule prefers.
"""

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from fewstep.errors import DamagedFileError, StorageError
from fewstep.storage.backing import backed
from fewstep.storage.compaction import Piece, choose_all, choose_merge
from fewstep.storage.held import Held
from fewstep.storage.parts import VERSION_KEY, Facts, Part, PartDirectory, one_line, open_filesystem
from fewstep.storage.records import Record
from fewstep.storage.repeats import counting
from fewstep.storage.threads import mapped

R = TypeVar("R", bound=Record)
T = TypeVar("T")

SMALL_PARTS = 64
# A larger file is read from disk each time, of it only the columns asked for.
_SMALL_BYTES = 256 * 2**10
_HELD = Held(32 * 2**20)

_ATTEMPTS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scanned:
    """One part in a scan: `rows` holds the scanned columns, `keep` is False where a row is a repeat."""

    part: Part
    rows: pa.Table
    keep: NDArray[np.bool_]


def coded_as(rows: pa.Table, names: Collection[str]) -> pa.Table:
    """The rows with these columns, where they are there and text, as dictionaries of their words."""
    for index, name in enumerate(rows.column_names):
        if name in names and not pa.types.is_dictionary(rows[name].type):
            words = rows[name].dictionary_encode()
            rows = rows.set_column(index, rows.schema.field(name).with_type(words.type), words)
    return rows


class Table(Generic[R]):
    """Rows of one record type beneath `root`, a local path or a URI, or a path on `filesystem`.

    Any number of readers, also in other processes, may read while one process writes. When more than
    `small_parts` small files have piled up, an append also merges some of them.
    """

    def __init__(
        self,
        record: type[R],
        root: str | Path,
        filesystem: pafs.FileSystem | None = None,
        small_parts: int = SMALL_PARTS,
    ) -> None:
        path = str(root)
        if filesystem is None:
            filesystem, path = open_filesystem(root)
        self.record = record
        self.directory = PartDirectory(path, filesystem)
        self._small_parts = small_parts
        self._schema = record.schema.with_metadata({VERSION_KEY: str(record.schema_version)})
        self._facts: dict[Part, Facts] = {}
        self._damaged: dict[Part, str] = {}
        self._lock = threading.RLock()
        self._next: int | None = None
        self._small = 0

    def __getstate__(self) -> dict[str, Any]:
        """What a reader in another process needs."""
        return {**vars(self), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state, _lock=threading.RLock())

    def append(self, records: Sequence[R]) -> None:
        """Write records as one new file; durable on return, whole or not at all.

        Raises StorageError when a record does not fit the schema or the filesystem refuses; after the
        latter the same records may be appended again, also when they did reach the disk.
        """
        if not records:
            return
        try:
            table = pa.Table.from_pylist([record.to_row() for record in records], schema=self._schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise StorageError(
                f"a record does not fit table {self.record.table}: {one_line(error)}; correct its types"
            ) from error
        with self._lock:
            if self._next is None:
                self._look_around()
            part = self.directory.publish(table, self._next or 0)
            # What was just written need not be opened again to be counted.
            self._facts[part] = Facts(table.num_rows, self.record.schema_version)
            self._hold(part, table)
            self._next = part.number + 1
            self._small += Piece(part, table.num_rows).small
            if self._small > self._small_parts:
                self._tidy()

    def read(self, columns: Sequence[str] | None = None, where: Mapping[str, str | int] | None = None) -> pa.Table:
        """The rows, each once, in the order of writing; of all columns or of `columns`.

        `where` keeps rows equal to its values, after repeats are left out; of files without a match only those
        columns are read. Damaged files are skipped: `damaged` names them. Raises StorageError when the filesystem
        refuses, or for a column that there is not.
        """
        return self.retry(lambda: self._read_once(columns, where or {}))

    def records(self, where: Mapping[str, str | int] | None = None) -> list[R]:
        """The rows as records, in the order of writing; `where` and errors as in `read`."""
        return self.record.from_table(self.read(where=where))

    def backed(self, where: Mapping[str, str | int] | None = None) -> list[R]:
        """The same of many rows: what is seldom needed of them is read when it is asked for, see `backing`."""
        return backed(self.record, self.read(where=where))

    def damaged(self) -> list[tuple[str, str]]:
        """(path, reason) of each file that reads skip: torn, or not Parquet; until it is gone."""
        pieces = self.retry(self._pieces)
        return [
            (self.directory.file(piece.part), self._damaged[piece.part])
            for piece in pieces
            if piece.part in self._damaged
        ]

    def readable(self) -> list[tuple[Part, Facts]]:
        """Every file that reads do not skip, in order, with what its footer says."""
        pieces = self.retry(self._pieces)
        return [(p.part, self._facts[p.part]) for p in pieces if p.part not in self._damaged and p.part in self._facts]

    def row_count(self) -> int:
        """Rows in all readable files by their footers; rows that are there twice count twice."""
        return sum(piece.rows for piece in self.retry(self._pieces))

    def compact(self) -> int:
        """Merge neighbouring small files; the number of merges done.

        May be killed at any point: the merged file is published before its inputs are removed, and
        rows present in both are read once. Raises StorageError when the filesystem refuses.
        """
        with self._lock:
            merges = choose_all(self.retry(self._pieces))
            done = sum(self._merge(parts) for parts in merges)
            self._look_around()
        return done

    def scan(
        self, columns: Sequence[str] = (), coded: Collection[str] = (), before: Sequence[Scanned] = ()
    ) -> list[Scanned]:
        """Each readable part with the mask of its rows that count; for readers part by part.

        It carries `columns` for all its rows, and those that decide. What a scan `before` of the same columns has read
        is not read again. Call it inside `retry`, together with what loads the parts. `coded` and errors as in `load`.
        """
        wanted, known = self._with_deciding(columns), {scanned.part: scanned.rows for scanned in before}
        loaded = self._each(lambda part: known[part] if part in known else self.load(part, wanted, coded))
        if not loaded:
            return []
        deciding = [table.select(list(self.record.deciding())) for _, table in loaded]
        keep = counting(pa.concat_tables(deciding), self.record)
        ends = np.cumsum([table.num_rows for _, table in loaded])
        masks = np.split(keep, ends[:-1])
        return [Scanned(part, table, mask) for (part, table), mask in zip(loaded, masks, strict=True)]

    def load(self, part: Part, columns: Sequence[str] | None = None, coded: Collection[str] = ()) -> pa.Table:
        """All rows of one part, with the columns that an older version lacks filled in.

        Columns of text that are `coded` come as dictionaries, which are read faster where few words are there many
        times. Raises FileNotFoundError when it was compacted away since, DamagedFileError when it is damaged (from
        then on reads skip it) and StorageError when the filesystem refuses.
        """
        if part.size <= _SMALL_BYTES:
            whole = _HELD.get(self._held_as(part))
            if whole is None:
                whole = self._load(part, None)
                _HELD.put(self._held_as(part), whole)
            return coded_as(whole if columns is None else whole.select(list(columns)), coded)
        return coded_as(self._load(part, columns, coded), coded)

    def _held_as(self, part: Part) -> Hashable:
        return self.record, self.directory.path, part

    def _load(self, part: Part, columns: Sequence[str] | None, coded: Collection[str] = ()) -> pa.Table:
        try:
            wanted = list(columns if columns is not None else self.record.schema.names)
            needed = [name for column in wanted for name in self.record.needed.get(column, ())]
            keys = set(wanted) <= set(self.record.deciding())
            every = list(dict.fromkeys([*wanted, *needed]))
            found, facts = self.directory.read(part, every, self.record.wrong, keys, coded)
            self._facts[part] = facts
            return self._fill(part, self._upgraded(part, found, facts.schema_version), columns)
        except DamagedFileError as error:
            self._damaged[part] = str(error)
            raise

    def retry(self, read: Callable[[], T]) -> T:
        """Call `read` until nothing gets in its way, each time from a fresh listing.

        In its way are a compaction that removes a listed file, and damage that only a later look at a
        file shows: then the whole file is left out, so that no answer holds a part of it.
        """
        attempts = 0
        while True:
            try:
                return read()
            except DamagedFileError:
                continue
            except FileNotFoundError as error:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise StorageError(
                        f"{self.directory.path} is compacted faster than it can be read: {one_line(error)}"
                    ) from error

    def _read_once(self, columns: Sequence[str] | None, where: Mapping[str, str | int]) -> pa.Table:
        if unknown := sorted(set(where) - set(self.record.schema.names)):
            raise StorageError(
                f"table {self.record.table} has no column {', '.join(unknown)}: select by "
                f"{', '.join(self.record.schema.names)}"
            )
        if not set(where) <= set(self.record.unique):
            return self._read_some(columns, where)
        wanted = list(columns if columns is not None else self.record.schema.names)
        every = self._with_deciding(wanted)
        tables = [table for _, table in self._each(lambda part: self._select(part, every, where))]
        if not tables:
            return pa.schema([self.record.schema.field(name) for name in wanted]).empty_table()
        table = pa.concat_tables(tables)
        keep = counting(table, self.record)
        return (table if keep.all() else table.filter(pa.array(keep))).select(wanted)

    def _read_some(self, columns: Sequence[str] | None, where: Mapping[str, str | int]) -> pa.Table:
        """Rows by columns that do not identify them: which of them count, all rows of their identity decide."""
        wanted = list(columns if columns is not None else self.record.schema.names)
        found = [pa.schema([self.record.schema.field(name) for name in wanted]).empty_table()]
        for scanned in self.scan(list(where)):
            match = scanned.keep & self._equal(scanned.rows, where)
            if match.any():
                found.append(self.load(scanned.part, wanted).filter(pa.array(match)))
        return pa.concat_tables(found)

    @staticmethod
    def _equal(rows: pa.Table, where: Mapping[str, str | int]) -> NDArray[np.bool_]:
        match = np.ones(rows.num_rows, dtype=np.bool_)
        for name, value in where.items():
            match &= pc.fill_null(pc.equal(rows.column(name), value), False).to_numpy()
        return match

    def _each(self, read: Callable[[Part], pa.Table | None]) -> list[tuple[Part, pa.Table]]:
        parts = [part for part in self.directory.list() if part not in self._damaged]

        def tried(part: Part) -> pa.Table | None:
            try:
                return read(part)
            except DamagedFileError:
                return None

        return [(part, table) for part, table in zip(parts, mapped(tried, parts), strict=True) if table is not None]

    def _select(self, part: Part, columns: Sequence[str], where: Mapping[str, str | int]) -> pa.Table | None:
        if not where:
            return self.load(part, columns)
        keys = self.load(part, list(where))
        match = self._equal(keys, where)
        if not match.any():
            return None
        table = self.load(part, columns)
        return table if match.all() else table.filter(pa.array(match))

    def _upgraded(self, part: Part, found: pa.Table, version: int) -> pa.Table:
        for name in found.column_names:
            known = name in self.record.schema.names
            if known and not self.record.schema.field(name).nullable and found.column(name).null_count:
                raise self.directory.damaged(part, f"column {name} lacks values")
        try:
            return self.record.upgrade(found, version)
        except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.directory.damaged(part, f"of schema version {version}, {one_line(error)}") from error

    def _fill(self, part: Part, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        present = set(table.column_names)
        fields = [self.record.schema.field(name) for name in columns or self.record.schema.names]
        filled = []
        for field in fields:
            if field.name not in present:
                default = pa.scalar(self.record.default(field.name), field.type)
                filled.append(pa.repeat(default, table.num_rows))
                continue
            column = table.column(field.name)
            is_coded = pa.types.is_dictionary(column.type) and column.type.value_type == field.type
            filled.append(column if is_coded or column.type == field.type else self._cast(part, column, field))
        typed = [field.with_type(column.type) for field, column in zip(fields, filled, strict=True)]
        return pa.Table.from_arrays(filled, schema=pa.schema(typed))

    def _with_deciding(self, columns: Sequence[str]) -> list[str]:
        return list(dict.fromkeys((*columns, *self.record.deciding())))

    def _cast(self, part: Part, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
        try:
            return column.cast(field.type)
        except pa.ArrowException as error:
            raise self.directory.damaged(part, f"column {field.name} holds {column.type}, not {field.type}") from error

    def _pieces(self) -> list[Piece]:
        pieces, listed = [], self.directory.list()
        there = set(listed)
        self._facts = {part: facts for part, facts in self._facts.items() if part in there}
        self._damaged = {part: reason for part, reason in self._damaged.items() if part in there}
        for part in listed:
            if part not in self._facts and part not in self._damaged:
                try:
                    self._facts[part] = self.directory.facts(part)
                except DamagedFileError as error:
                    self._damaged[part] = str(error)
            facts = self._facts.get(part)
            if part in self._damaged or facts is None:
                pieces.append(Piece(part, 0, fixed=True))
            else:
                # A newer version's further columns would be lost in a merge.
                newer = facts.schema_version > self.record.schema_version
                pieces.append(Piece(part, facts.rows, fixed=newer))
        return pieces

    def _look_around(self) -> None:
        pieces = self.retry(self._pieces)
        self._next = max([self._next or 0, *(piece.part.number + 1 for piece in pieces)])
        self._small = sum(piece.small for piece in pieces)

    def _hold(self, part: Part, table: pa.Table) -> None:
        if part.size <= _SMALL_BYTES:
            _HELD.put(self._held_as(part), table.replace_schema_metadata())

    def _tidy(self) -> None:
        try:
            self._merge(choose_merge(self.retry(self._pieces)))
            self._look_around()
        except StorageError as error:
            # The append itself is done; the next try comes when as many files again have piled up.
            _log.warning("compaction put off: %s", error)
            self._small = 0

    def _merge(self, parts: Sequence[Part]) -> bool:
        if not parts:
            return False
        try:
            bare = self._schema.remove_metadata()
            table = pa.concat_tables([self.load(part).cast(bare) for part in parts])
        except FileNotFoundError:
            return False  # another process has merged them
        except DamagedFileError:
            return False  # it is left alone from now on, and its neighbours are merged next time
        keep = counting(table, self.record)
        merged = table.filter(pa.array(keep)).replace_schema_metadata(self._schema.metadata)
        # In the order of writing the merged file stands where no input left over by a crash can come
        # before it and win: first among them where the first row counts, last where the latest does.
        # A preference ranks by what rows hold, and by the place only the equal ones, of which the first counts.
        part = self.directory.publish(merged, parts[-1 if self.record.latest_wins else 0].number)
        self._hold(part, merged)
        for part in parts:
            self.directory.remove(part)
            _HELD.drop(self._held_as(part))
        return True
