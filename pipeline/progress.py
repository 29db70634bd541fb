"""What a running search has done and what is left of its budget, told from its records alone."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.pipeline.proposers.base import ANALYTIC, PORTFOLIO, PRESET
from fewstep.pipeline.reports.rows import figure_text
from fewstep.storage.origins import told_origin
from fewstep.storage.records import EvaluationRecord

# Origins of what a search is given to look at; what it proposes itself has none of these.
GIVEN = (PRESET, ANALYTIC, "named:")
WARM, TUNED = "warm-start", ("refine:", "refined:")
PHASES = {"finals": "finals", "report": "report", "refine": "tuning"}


class SearchProgress:
    """Counts of records; `known` are those of a search that is gone on with, which took none of this run's time."""

    def __init__(self, budget: int, known: Sequence[EvaluationRecord] = ()) -> None:
        self.budget, self.phase = budget, "search"
        self.best: dict[int, EvaluationRecord] = {}
        self.spent = self.reported = self.rows = self.failed = 0
        self._presets, self._portfolio, self._warm, self._own, self._tuned, self._judged = (
            set[int]() for _ in range(6)
        )
        self._origins: dict[str, str] = {}
        for record in known:
            self.add(record)
        self._before = self.spent

    def add(self, record: EvaluationRecord) -> None:
        """Take in a record."""
        self.phase = "report" if record.of_report else PHASES.get(record.rung, "search")
        if record.of_report:
            self.reported += record.denoiser_calls
            self.rows += 1
            return
        self.spent += record.denoiser_calls
        self._origins.setdefault(record.candidate, record.origin)
        if record.origin.startswith(TUNED):
            if record.rung == "refine":
                self._tuned |= {record.trial} if record.status == "complete" else set()
                self.failed += record.status != "complete"
        elif record.origin.startswith(GIVEN):
            self._presets.add(record.trial)
        elif record.origin.startswith(PORTFOLIO):
            self._portfolio.add(record.trial)
        else:
            (self._warm if record.origin.startswith(WARM) else self._own).add(record.trial)
        if record.rung != "frechet" or record.value is None or record.status != "complete":
            return
        self._judged.add(record.trial)
        best = self.best.get(record.nfe)
        if best is None or best.value is None or record.value < best.value:
            self.best[record.nfe] = record

    def counts(self) -> str:
        """How many of what was known, own proposals and tuned ones were looked at, and how many of all were judged."""
        found = [f"{len(self._presets)} presets", f"{len(self._own)} own proposals", f"{len(self._tuned)} tuned"]
        if self._warm:
            found.insert(1, f"{len(self._warm)} warm starts")
        if self._portfolio:
            found.insert(1, f"{len(self._portfolio)} found on other models")
        if self.failed:
            found.append(f"{self.failed} not tuned for an error")
        return ", ".join([*found, f"{len(self._judged)} judged"])

    def calls(self) -> str:
        """Denoiser calls spent and left of the budget; of the report those spent on it."""
        left = max(0, self.budget - self.spent)
        told = f"{self.spent:,} of {self.budget:,} calls spent, {left:,} left"
        return told + (f", {self.reported:,} on {self.rows} rows of the report" if self.rows else "")

    def left(self, seconds: float) -> str:
        """How long the search takes from here, by the calls a second of the `seconds` so far."""
        done, todo = self.spent - self._before, self.budget - self.spent
        if self.phase == "report" or done <= 0 or todo <= 0:
            return f"{duration(seconds)} so far"
        return f"about {duration(seconds * todo / done)} of search left"

    def found_by(self, nfe: int) -> str:
        """In words how the best so far of an NFE came to be."""
        return told_origin(self.best[nfe].origin, self._origins) if nfe in self.best else ""

    def line(self, seconds: float) -> str:
        """All of it in one line, the best so far at its end."""
        best = "".join(
            f"   NFE {n}: {figure_text(r.value or 0.0)} ({self.found_by(n)})" for n, r in sorted(self.best.items())
        )
        return f"{self.phase:7} {self.summary(seconds)}{best}"

    def summary(self, seconds: float) -> str:
        """Counts, calls and time."""
        return f"{self.counts()}; {self.calls()}; {self.left(seconds)}"


def duration(seconds: float) -> str:
    """Seconds in words, as `45 s`, `12 min` or `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
