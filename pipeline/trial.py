"""What a search speaks of: rungs and their ladder, candidates, and the trials that climb it."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

from optuna.trial import TrialState

from fewstep.search_spaces.point import Point, parse_point, schedule_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.genome import ALONE
from fewstep.search_spaces.space import Space
from fewstep.storage.backing import packed
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import metric_class
from fewstep.tasks.work import GROUP

G = TypeVar("G")


@dataclass(frozen=True)
class Rung:
    """One kind of evaluation: a metric on how many images of which noise; `arguments` are the metric's own.

    `also` names metrics that grow and are measured of the same images: what they give is among the record's figures.
    """

    name: str
    metric: str
    images: int
    seed: int
    arguments: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def controlled_by(self, point: Point, rung: Rung) -> Rung:
        """The same, of a controlled metric: guessed from what a point gave at another rung."""
        return replace(self, arguments={CONTROL: point.to_json(), OF: str(rung.images // GROUP * GROUP)})


# Arguments of a rung whose metric is controlled: another point (JSON), and how many of its images were measured.
CONTROL, OF = "control", "of"


def figure_name(metric: str) -> str:
    """What a metric of NAME or NAME:ARGUMENT is called where names are letters, digits, points and dashes."""
    name, _, argument = metric.partition(":")
    last = argument.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", f"{name}-{last}" if last else name)


class Ladder(NamedTuple):
    """The rungs of a search. All but the report share their noise, or their originals; the report's are its own.

    `main` is where candidates are compared for good; it may be the `screen` itself.
    """

    screen: Rung
    main: Rung
    finals: Rung
    report: Rung


def kept(records: Iterable[EvaluationRecord], rung: Rung) -> int:
    """Images of a rung that were measured by then: whole groups are kept of metrics that grow."""
    metric = metric_class(rung.metric)
    same = [r for r in records if r.status == "complete" and (r.metric, r.seed) == (metric.figure, rung.seed)]
    return max((min(r.images // GROUP * GROUP, rung.images) for r in same), default=0) if metric.grows else 0


def grown(first: Rung, then: Rung) -> int:
    """Images that a rung adds to what another one measured."""
    if first.name == then.name:
        return 0
    same = (first.metric, first.seed) == (then.metric, then.seed) and metric_class(then.metric).grows
    return then.images - (first.images // GROUP * GROUP if same else 0)


def promoted(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a value is in the best share `keep` of all values seen at its rung, in rising order, itself among them.

    The rule of asynchronous successive halving (1810.05934): nobody waits for a rung to fill.
    """
    return bisect_left(others, value) < max(1, math.ceil(keep * len(others)))


@dataclass(frozen=True)
class Candidate:
    """A trial's point. `parameters` are what a sampler drew, with which a study is rebuilt exactly."""

    trial: int
    point: Point
    origin: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """The point's content address: 16 hex digits."""
        return self.point.hash

    @cached_property
    def nfe(self) -> int:
        """The point's denoiser calls for one image."""
        return self.point.nfe

    @property
    def json(self) -> str:
        """The point's."""
        return self.point.to_json()

    @property
    def is_drawn(self) -> bool:
        """Whether it has parameters: it is a member of the space then."""
        return bool(self.parameters)

    def genome(self, space: Space[G]) -> G:
        """The member of a space that it is."""
        return space.genome(self.point)

    @property
    def schedule(self) -> SolverSchedule:
        """The schedule that it samples by; only for points that have one."""
        schedule = schedule_of(self.point)
        assert schedule is not None
        return schedule


class Kept(Candidate):
    """A candidate as one of its records has it: its point is read when it is asked for."""

    def __init__(self, trial: int, origin: str, nfe: int, record: EvaluationRecord) -> None:
        self.__dict__.update(trial=trial, origin=origin, hash=record.candidate, nfe=nfe, _record=record)

    @property
    def point(self) -> Point:
        """The point."""
        return _read(self.json)

    @property
    def json(self) -> str:
        """The point's, as it is kept."""
        return self._record.candidate_json

    @property
    def parameters(self) -> dict[str, Any]:
        """What a sampler drew."""
        return self._record.parameters

    @property
    def is_drawn(self) -> bool:
        """See Candidate."""
        return not self._record.begins("parameters", "{}")

    def genome(self, space: Space[G]) -> G:
        """See Candidate."""
        return space.stored(self.json)

    @property
    def _record(self) -> EvaluationRecord:
        record: EvaluationRecord = self.__dict__["_record"]
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is."""
        return Kept, (self.trial, self.origin, self.nfe, self._record)


# Parents are asked for again and again.
_read = lru_cache(maxsize=256)(parse_point)


def candidate_of(record: EvaluationRecord) -> Candidate:
    """The candidate that a record is about; its hash is the one that the record was written under.

    A schedule alone is read when it is asked for: its calls are the record's, of other points those may be counted.
    """
    if record.nfe and record.begins("candidate_json", ALONE):
        return Kept(record.trial, record.origin, record.nfe, record)
    candidate = Candidate(record.trial, parse_point(record.candidate_json), record.origin, record.parameters)
    candidate.__dict__["hash"] = record.candidate
    return candidate


Work = tuple[Candidate, Rung]


@dataclass
class Trial:
    """A candidate, its records by rung, and how far it is: running, or over in one of Optuna's ways."""

    candidate: Candidate
    records: dict[str, EvaluationRecord] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    promoted: bool = False

    @property
    def number(self) -> int:
        """Its number."""
        return self.candidate.trial

    def slim(self) -> None:
        """Once it is over, keep the bulk of it packed."""
        if self.state == TrialState.RUNNING:
            return
        self.records = {rung: packed(record) for rung, record in self.records.items()}
        c = self.candidate
        if type(c) is Candidate and (same := [r for r in self.records.values() if r.candidate == c.hash]):
            self.candidate = Kept(c.trial, c.origin, c.nfe, same[0])

    def value(self, rung: Rung) -> float | None:
        """Its value at a rung; None where it has none."""
        record = self.records.get(rung.name)
        return None if record is None or record.status != "complete" else record.value
