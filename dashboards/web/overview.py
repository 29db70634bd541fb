"""What a study is, what it has done and what is left to it, in a row of the list of studies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fewstep.dashboards.results import REPORT
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry
from fewstep.storage.records import MEASURED

RUNNING, FINISHED, STOPPED, KEPT = "running", "finished", "stopped", "kept"


@dataclass(frozen=True)
class Overview:
    """Counts of a study; `budget` and `left` are denoiser calls, None where there is no search."""

    entry: Entry
    state: str
    nfes: list[int]
    evaluations: int
    failed: int
    spent: int
    reported: int
    budget: int | None
    last: datetime | None
    seconds: float

    @property
    def left(self) -> int | None:
        """Denoiser calls left of the budget."""
        return None if self.budget is None else max(0, self.budget - self.spent)

    @property
    def calls(self) -> str:
        """The NFEs in words: all of a few, the ends of many."""
        few = len(self.nfes) <= 5
        return ", ".join(map(str, self.nfes)) if few else f"{self.nfes[0]} to {self.nfes[-1]} ({len(self.nfes)})"

    @property
    def progress(self) -> int | None:
        """Per cent of the budget that is spent."""
        return min(100, round(100 * self.spent / self.budget)) if self.budget else None


def overview(columns: Columns, entry: Entry) -> Overview:
    """Count; StorageError where the study's files cannot be read."""
    names = ["nfe", "rung", "status", "denoiser_calls", "seconds", "finished_at"]
    rows = columns.frame(entry.store, entry.study, names)
    report = rows["rung"].isin([r for r in rows["rung"].unique() if r == REPORT or r.startswith(MEASURED)])
    calls = rows["denoiser_calls"]
    state = RUNNING if entry.running else FINISHED if report.any() else STOPPED
    return Overview(
        entry,
        state if entry.budget or entry.running else KEPT,
        entry.nfes or sorted(int(n) for n in rows["nfe"].unique()),
        len(rows),
        int((rows["status"] != "complete").sum()),
        int(calls[~report].sum()),
        int(calls[report].sum()),
        entry.budget,
        rows["finished_at"].max().to_pydatetime() if len(rows) else None,
        float(rows["seconds"].sum()),
    )
