"""When to stop: a model of which nothing can be evaluated, or a machine that fails at everything."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from fewstep.errors import EvaluationError
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.faults import may_succeed

# So many evaluations in a row: more would end as they did.
MOST = 8


class FailureWatch:
    """Looks at records as they come; `succeeded` says whether the study holds any that is complete."""

    def __init__(self, succeeded: Callable[[], bool]) -> None:
        self._succeeded = succeeded
        self._row: list[str] = []
        self._any = False

    def note(self, record: EvaluationRecord) -> None:
        """Take in a record; EvaluationError where MOST in a row failed, as all others would."""
        if record.status == "complete":
            self._any = True
            self._row.clear()
            return
        self._row = [*self._row[1 - MOST :], record.error]
        if len(self._row) < MOST:
            return
        if all(map(may_succeed, self._row)):
            raise EvaluationError(
                f"the machine failed at {MOST} evaluations in a row, the last time so: {self._row[-1]}; see to it, "
                "then go on with --resume: they are tried again"
            )
        if len({_kind(error) for error in self._row}) == 1 and not self._any and not self._succeeded():
            self._stop(f"the first {MOST} evaluations failed")

    def end(self) -> None:
        """A search is over; EvaluationError where it evaluated, and nothing could be."""
        if self._row and not self._any and not self._succeeded():
            self._stop("every evaluation failed")

    def _stop(self, what: str) -> NoReturn:
        raise EvaluationError(
            f"{what}, the last one so: {self._row[-1]}; the search stops here: see what the model makes with `fewstep "
            "sample`, mend it or its settings, and start anew, or go on with --resume"
        )


def _kind(error: str) -> str:
    """What is alike in reasons that differ in names and numbers: the type of what was raised, or the first words."""
    head, colon, _ = error.partition(": ")
    return head if colon else re.sub(r"[^A-Za-z ]+", "", error)[:40]
