"""The table of evaluations: filtered, sorted and cut into pages here, so that a browser gets one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fewstep.dashboards.summary import ladder
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.errors import ConfigurationError
from fewstep.storage.records import EvaluationRecord

PAGE = 50
SORTS = {
    "order": "order of recording",
    "value": "value",
    "nfe": "NFE",
    "denoiser_calls": "denoiser calls",
    "finished_at": "time",
}
# What a line of the table does not tell.
_UNTOLD = ("candidate_json", "parameters", "metrics", "versions")
_TEXT = ("candidate", "origin", "error")


@dataclass(frozen=True)
class Asked:
    """What to show; empty texts and a `nfe` of None filter nothing."""

    nfe: int | None = None
    rung: str = ""
    origin: str = ""
    status: str = ""
    text: str = ""
    sort: str = "order"
    down: bool = False
    page: int = 1

    def address(self, **changes: object) -> str:
        """The query of an address that asks for the same with changes."""
        values = {**vars(self), **changes}
        kept = {name: value for name, value in values.items() if value not in (None, "", False)}
        return "?" + urlencode({name: 1 if value is True else value for name, value in kept.items()})


@dataclass(frozen=True)
class Choices:
    """What the filters offer."""

    nfes: list[int]
    rungs: list[str]
    origins: list[str]
    statuses: list[str]


@dataclass(frozen=True)
class Page:
    """Some rows of those that match."""

    rows: list[EvaluationRecord]
    matching: int
    total: int
    pages: int
    page: int
    choices: Choices


def trials(columns: Columns, entry: Entry, asked: Asked) -> Page:
    """The page that was asked for, or the last one; ConfigurationError for a sort that there is not."""
    if asked.sort not in SORTS:
        raise ConfigurationError(f"cannot sort by {asked.sort!r}: choose from {', '.join(SORTS)}")
    names = ["nfe", "rung", "origin", "status"]
    wanted = list(dict.fromkeys([*names, asked.sort, *(_TEXT if asked.text else ())]))
    rows = columns.frame(entry.store, entry.study, wanted)
    match = np.flatnonzero(_matching(rows, asked))
    pages = max(1, -(-len(match) // PAGE))
    page = min(max(1, asked.page), pages)
    shown = _sorted(rows, match, asked)[(page - 1) * PAGE : page * PAGE]
    told = columns.rows(entry.store, entry.study, shown.tolist(), _UNTOLD)
    return Page(told, len(match), len(rows), pages, page, _choices(rows))


def _matching(rows: pd.DataFrame, asked: Asked) -> NDArray[np.bool_]:
    match = np.ones(len(rows), dtype=np.bool_)
    if asked.nfe is not None:
        match &= (rows["nfe"] == asked.nfe).to_numpy()
    for name, value in (("rung", asked.rung), ("status", asked.status)):
        if value:
            match &= (rows[name] == value).to_numpy()
    if asked.origin:
        match &= _in_words(rows["origin"], lambda text: _family(text) == asked.origin)
    if asked.text:
        part = asked.text.lower()
        # Hashes have no capitals.
        anywhere = rows["candidate"].str.contains(part, regex=False).to_numpy(dtype=np.bool_)
        for name in ("origin", "error"):
            anywhere = anywhere | _in_words(rows[name], lambda text: part in text.lower())
        match &= anywhere
    return match


def _in_words(column: pd.Series, test: Callable[[str], bool]) -> NDArray[np.bool_]:
    """A test of each distinct word, for all rows."""
    known = np.array([test(str(word)) for word in column.cat.categories], dtype=np.bool_)
    codes = column.cat.codes.to_numpy()
    return known[codes] if len(known) else np.zeros(len(codes), dtype=np.bool_)


def _sorted(rows: pd.DataFrame, match: NDArray[np.int64], asked: Asked) -> NDArray[np.int64]:
    column = rows[asked.sort]
    column = column.astype("int64") if asked.sort == "finished_at" else column.astype("float64")
    keys = column.to_numpy()[match]
    # What has no value stands last, either way.
    order = np.argsort(-keys if asked.down else keys, kind="stable")
    return match[order]


def _family(origin: str) -> str:
    """Who proposed it, without what exactly: `preset` of `preset:ddim/karras`."""
    return origin.partition(":")[0]


def _choices(rows: pd.DataFrame) -> Choices:
    rungs = sorted((str(name) for name in rows["rung"].unique()), key=ladder)
    origins = sorted({_family(str(name)) for name in rows["origin"].unique()})
    statuses = sorted(str(name) for name in rows["status"].unique())
    return Choices(sorted(int(n) for n in rows["nfe"].unique()), rungs, origins, statuses)
