"""One self-contained HTML page about a grid: its tables and pictures, nothing loaded from anywhere else."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fewstep.files import write_whole

# A page of thousands of rows is no page.
MOST_ROWS = 200


def write_grid_page(
    path: Path,
    title: str,
    facts: Mapping[str, object],
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, Path],
) -> Path:
    """Write the page; the path. `tables` are shown to MOST_ROWS rows, `pictures` are PNG files; both by their heads.

    Raises StorageError when the file cannot be written.
    """
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("grid.html.j2")
    text = template.render(
        title=title,
        facts=facts,
        tables={name: _table(table) for name, table in tables.items() if len(table)},
        pictures={name: base64.b64encode(file.read_bytes()).decode() for name, file in pictures.items()},
    )
    return write_whole(path, text.encode())


def _table(table: pd.DataFrame) -> dict[str, Any]:
    shown = table.head(MOST_ROWS)
    rows = [[_text(value) for value in row] for row in shown.itertuples(index=False)]
    return {"heads": [_text(name) for name in table.columns], "rows": rows, "rest": len(table) - len(shown)}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
