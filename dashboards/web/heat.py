"""Heat maps of a grid, from the pivot tables that `fewstep grid` wrote."""

from __future__ import annotations

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fewstep.dashboards.web.places import Entry
from fewstep.errors import DataError
from fewstep.files import read_text

MOST_ROWS = 200


@dataclass(frozen=True)
class Pivot:
    """One table: the rows with the lowest values, at most MOST_ROWS; `rest` are left out."""

    space: str
    across: str
    table: pd.DataFrame
    command: str
    rest: int


def pivots(entry: Entry) -> list[Pivot]:
    """A table each feature space; empty where the folder is no grid's. DataError where a file is damaged."""
    return [_read(path) for path in sorted(entry.folder.glob("pivot-*.csv"))]


def _read(path: Path) -> Pivot:
    lines = read_text(path).splitlines()
    head, body = [x for x in lines if x.startswith("# ")], [x for x in lines if x and not x.startswith("# ")]
    command = next((x.removeprefix("# command: ") for x in head if x.startswith("# command: ")), "")
    rows = list(csv.reader(body))
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise DataError(f"{path} is no table of a grid: make it again with `fewstep grid --partial`")
    table = pd.DataFrame(rows[1:], columns=rows[0])
    # Down stand names, across the values of one field: those are numbers.
    down = [n for n in table.columns if pd.to_numeric(table[n], errors="coerce").isna().any() and not _is_number(n)]
    down = down or list(table.columns[:1])
    across = [name for name in table.columns if name not in down]
    if not across:
        raise DataError(f"{path} has names alone and no values: make it again with `fewstep grid --partial`")
    values = table[across].apply(pd.to_numeric, errors="coerce")
    values.index = pd.Index([", ".join(row) for row in table[down].itertuples(index=False)])
    kept = values[values.min(axis=1).rank(method="first") <= MOST_ROWS]
    space = path.stem.removeprefix("pivot-")
    return Pivot(space, across_of(command), kept, command, len(values) - len(kept))


def across_of(command: str) -> str:
    """Which axes stand across, as the command says that made the table."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--columns"]
    return "denoiser calls per image (NFE)" if not named or named == ["nfe"] else ", ".join(named)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
