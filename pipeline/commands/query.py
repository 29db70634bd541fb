"""`fewstep query`: SQL over a study's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError, DamagedFileError
from fewstep.pipeline.commands.options import AsJson, into, print_json, writable

NAME = "query"


def command(
    sql: Annotated[str, typer.Argument(help="one SELECT from evaluations, moments, studies and events")],
    out: Annotated[str, typer.Option("--out", help="directory of the study, or its address, as s3://bucket/study")],
    csv: Annotated[Path | None, into(help="write the answer here instead", check=writable)] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a study's tables in SQL: `select origin, min(value) from evaluations where rung = 'frechet' group by origin`.

    Damaged files are skipped and named, with exit code 2.
    """
    from rich.console import Console

    from fewstep.files import write_text
    from fewstep.pipeline.display import plain_table
    from fewstep.storage.masking import without_secrets
    from fewstep.storage.sql import query
    from fewstep.storage.store import Store

    if not out:
        raise ConfigurationError("a path is empty: give a name, or . for this folder")
    store = Store(out)
    if store.empty:
        raise ConfigurationError(
            f"{without_secrets(out)} holds no tables: give the --out of a search, a baseline or an evaluation"
        )
    found = query(store, sql)
    if csv is not None:
        write_text(csv, found.to_pandas().to_csv(index=False))
    elif as_json:
        print_json({"columns": found.column_names, "rows": found.to_pylist()})
    else:
        Console().print(plain_table("", found.column_names, found.to_pylist()))
    if line := store.describe_damage(f"fewstep search --resume --out {without_secrets(out)}"):
        raise DamagedFileError(line)
