"""A point under evaluation: who proposed it, under which number, by which parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fewstep.search_spaces.point import Point, parse_point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord


@dataclass(frozen=True)
class Candidate:
    """A trial's point. `parameters` are what a sampler drew, with which a study is rebuilt exactly."""

    trial: int
    point: Point
    origin: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """The point's content address: 16 hex digits."""
        return self.point.hash

    @property
    def nfe(self) -> int:
        """The point's denoiser calls for one image."""
        return self.point.nfe

    @property
    def schedule(self) -> SolverSchedule:
        """The schedule that it samples by; only for points that have one."""
        schedule = schedule_of(self.point)
        assert schedule is not None
        return schedule


def candidate_of(record: EvaluationRecord) -> Candidate:
    """The candidate that a record is about."""
    return Candidate(record.trial, parse_point(record.candidate_json), record.origin, record.parameters)
