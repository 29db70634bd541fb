"""When to stop: a model of which nothing can be evaluated, or a machine that fails at everything."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from fewstep.errors import EvaluationError
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.faults import may_succeed

# So many evaluations in a row, of a study that has none that succeeded, and of one that has: more would end alike.
MOST, MOST_LATER = 8, 32


class FailureWatch:
    """Looks at records as they come; `succeeded` says whether the study holds any that is complete."""

    def __init__(self, succeeded: Callable[[], bool]) -> None:
        self._succeeded = succeeded
        self._row: list[str] = []
        self._any = False

    def note(self, record: EvaluationRecord) -> None:
        """Take in a record; EvaluationError where so many in a row failed that all others would."""
        if record.status == "complete":
            self._any = True
            self._row.clear()
            return
        self._row = [*self._row[1 - MOST_LATER :], record.error]
        last = self._row[-MOST:]
        if len(last) == MOST and all(map(may_succeed, last)):
            raise EvaluationError(
                f"the machine failed at {MOST} evaluations in a row, the last time so: {last[-1]}; see to it, "
                "then run it again (a search: with --resume), and they are tried again"
            )
        if len(self._row) == MOST_LATER and _alike(self._row):
            self._stop(f"{MOST_LATER} evaluations in a row failed")
        if len(last) == MOST and _alike(last) and not self._any and not self._succeeded():
            self._stop(f"the first {MOST} evaluations failed")

    def end(self) -> None:
        """A search is over; EvaluationError where it evaluated, and nothing could be."""
        if self._row and not self._any and not self._succeeded():
            self._stop("every evaluation failed")

    def _stop(self, what: str) -> NoReturn:
        raise EvaluationError(
            f"{what}, the last one so: {self._row[-1]}; it stops here: see what the model makes with `fewstep sample`, "
            "and mend it or the settings; where it should go on all the same, run it again (a search: with --resume)"
        )


def _alike(errors: list[str]) -> bool:
    return len(set(map(_kind, errors))) == 1


def _kind(error: str) -> str:
    """What is alike in reasons that differ in names and numbers: the type of what was raised, or the first words."""
    head, colon, _ = error.partition(": ")
    return head if colon else re.sub(r"[^A-Za-z ]+", "", error)[:40]
