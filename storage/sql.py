"""SQL over a store's tables, answered by DuckDB on the very files.

Each table is a view of its name. What is read is what every other reader gets: damaged files are left out, older
versions brought up to date, and of rows that are there twice the one that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from fewstep.errors import ConfigurationError, DamagedFileError, StorageError
from fewstep.storage import distinct
from fewstep.storage.masking import without_secrets
from fewstep.storage.parts import one_line
from fewstep.storage.store import Store
from fewstep.storage.tables import Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def query(store: Store, text: str) -> pa.Table:
    """What one SELECT says, see the module's docstring.

    ConfigurationError where DuckDB is not installed, or the text is no single SELECT that it understands; StorageError
    where the store cannot be read.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ConfigurationError("SQL is answered by DuckDB, which is not here: pip install 'fewstep[sql]'") from error
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        try:
            statements = connection.extract_statements(text)
        except duckdb.Error as error:
            raise ConfigurationError(f"not SQL that DuckDB understands: {one_line(error)}") from None
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ConfigurationError(
                f"{len(statements)} statements, or another than SELECT: give one SELECT from "
                f"{', '.join(table.record.table for table in store.tables)}"
            )
        # Paths in a query would read whatever the user may; tables are all there is.
        connection.execute(f"SET allowed_directories = [{_quoted(store.root)}]")
        connection.execute("SET enable_external_access = false")
        try:
            for table in store.tables:
                if table.record.table in text.lower():
                    table.retry(lambda table=table: _view(connection, table))  # type: ignore[misc]
            found: pa.Table = connection.sql(text).to_arrow_table()
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise StorageError(f"cannot read {store.root}: {without_secrets(one_line(error))}") from None
        except duckdb.Error as error:
            raise ConfigurationError(f"the query fails: {one_line(error)}") from None
    return found


def _view(connection: DuckDBPyConnection, table: Table[Any]) -> None:
    """Make a table's view."""
    record, name = table.record, table.record.table
    names, fields = ", ".join(f'"{n}"' for n in record.schema.names), record.schema
    current, others = [], [fields.empty_table()]
    parts = table.readable()
    for part, facts in parts:
        if facts.schema_version == record.schema_version:
            current.append(table.directory.file(part))
            continue
        try:
            others.append(table.load(part))
        except DamagedFileError:
            continue
    connection.register(f"_{name}_others", pa.concat_tables(others).append_column("_place", _places(others)))
    sources = [f"SELECT {names}, '' AS _file, _place FROM _{name}_others"]
    if current and isinstance(table.directory.filesystem, pafs.LocalFileSystem):
        listed = ", ".join(map(_quoted, current))
        sources.append(
            f"SELECT {names}, filename AS _file, file_row_number AS _place "
            f"FROM read_parquet([{listed}], filename = true, file_row_number = true)"
        )
    elif current:
        dataset = pads.dataset(current, fields, format="parquet", filesystem=table.directory.filesystem)
        connection.register(f"_{name}_remote", dataset)
        sources.append(f"SELECT {names}, 'remote' AS _file, row_number() OVER () AS _place FROM _{name}_remote")
    connection.execute(f"CREATE VIEW _{name} AS {' UNION ALL '.join(sources)}")
    keys, files = ", ".join(f'"{n}"' for n in record.unique), [part for part, _ in parts]
    counts = ""
    if not distinct.is_noted(table, files):
        if _are_distinct(connection, f"_{name}", keys):
            distinct.note(table, files)
        else:
            counts = f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_first(table)}) = 1"
    connection.execute(f"CREATE VIEW {name} AS SELECT {names} FROM _{name}{counts}")


def _are_distinct(connection: DuckDBPyConnection, view: str, keys: str) -> bool:
    """Whether no two rows agree on the keys."""
    rows, identities = connection.execute(f"SELECT count(*), count(DISTINCT ({keys})) FROM {view}").fetchall()[0]
    return bool(rows == identities)


def _first(table: Table[Any]) -> str:
    """How rows of one identity are ordered: the one that counts first."""
    rule = table.record.preferred
    if rule is None:
        way = "DESC" if table.record.latest_wins else "ASC"
        return f"_file {way}, _place {way}"
    better = f'"{rule.column}" = {_quoted(rule.value)}'
    return f'{better} DESC, CASE WHEN {better} THEN NULL ELSE "{rule.time}" END DESC NULLS LAST, _file, _place'


def _places(tables: list[pa.Table]) -> pa.Array:
    return pa.array(range(sum(t.num_rows for t in tables)), pa.int64())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
