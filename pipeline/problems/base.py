"""What a study is about, whatever is searched: one interface, one implementation a space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fewstep.pipeline.executors.base import Executor
from fewstep.pipeline.proposers.options import OnRefit
from fewstep.pipeline.reports.rows import Row
from fewstep.pipeline.search import Search
from fewstep.pipeline.trial import Candidate, Ladder, Rung, Work
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.work import Subject

# Tells what could not be made without ending anything.
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Publication:
    """What the last step of a study has: where files go, what is told beside the figures, who makes images."""

    root: Path
    identity: dict[str, object]
    command: str
    executor: Executor
    warn: Warn


class Problem(Protocol):
    """A space with everything that a study of it needs. Making one writes nothing."""

    settings: Any

    @cached_property
    def files(self) -> ModelFiles:
        """The model's."""

    @cached_property
    def subject(self) -> Subject:
        """What is evaluated."""

    @property
    def teacher(self) -> SolverSchedule | None:
        """The many-step sampler that paired distances are to."""

    @cached_property
    def ladder(self) -> Ladder:
        """Its rungs."""

    def search(self, on_refit: OnRefit | None = None) -> Search:
        """A new search."""

    def report_work(self, search: Search) -> list[Work]:
        """What the report has to evaluate, each point once, the found ones first."""

    def report_rows(self, search: Search, records: Sequence[EvaluationRecord]) -> Sequence[Row]:
        """The final table from the report's records."""

    @property
    def notes(self) -> dict[str, str]:
        """What columns of the table mean, by name."""

    @property
    def seeds(self) -> dict[str, int]:
        """Seeds by name, for the header of a table."""

    def publish(self, search: Search, rows: Sequence[Row], to: Publication) -> dict[str, Path]:
        """Write what was found, in the form that it is used in: all of it can be made again from the records."""


def each_once(work: Sequence[tuple[Candidate, Rung]]) -> list[Work]:
    """Work without repeated points, in its order."""
    distinct: dict[str, Work] = {}
    for candidate, rung in work:
        distinct.setdefault(candidate.hash, (candidate, rung))
    return list(distinct.values())


def found(candidate: Candidate) -> Candidate:
    """The same under the origin that says that it was found."""
    return Candidate(candidate.trial, candidate.point, f"found:{candidate.origin}", candidate.parameters)
