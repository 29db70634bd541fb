"""From a candidate and a rung to tasks, and from task results to one record.

Evaluations are content-addressed: the key names model, point, noise, image count, and what the metric depends on. Parts
are addressed without the image count, so a larger evaluation computes only what is new.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep import __version__
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.trial import CONTROL, OF, Candidate, Rung, figure_name
from fewstep.search_spaces.point import OdePoint, Point, content_key, parse_point, quantization_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.faults import given_up, may_succeed, told
from fewstep.tasks.metrics.metric import Metric, Score, Setting, make_metric
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.rendering import sampling_part
from fewstep.tasks.work import FEATURES, GROUP, Part, Subject, Task, TaskResult

IMAGES_PER_TASK = 1000
# Points whose parts stay in memory, as long as they take no more bytes; others are read back from the store when they
# grow.
RECENT, FEWEST_RECENT, RECENT_BYTES = 64, 4, 256 * 2**20


@dataclass
class _Pending:
    candidate: Candidate
    rung: Rung
    base: str
    missing: set[int]
    also: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0
    device: str = ""
    error: str = ""
    results: dict[int, TaskResult] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


class Evaluator:
    """Plans evaluations of one subject, and scores them; `loaded` is what it shares with others, see `Setting`."""

    def __init__(
        self,
        study: str,
        subject: Subject,
        store: Store,
        teacher: SolverSchedule | None = None,
        loaded: dict[tuple[str, ...], Any] | None = None,
    ) -> None:
        self.study, self.subject, self.store, self.teacher = study, subject, store, teacher
        self.files = subject.files
        self.statistics_hash = (
            ModelStatistics.load_for(Path(subject.statistics), self.files).hash if subject.statistics else ""
        )
        self._setting = Setting(subject, self.files, loaded=loaded)
        self._metrics: dict[str, Metric] = {}
        self._pending: dict[str, _Pending] = {}
        self._parts: dict[str, dict[int, Part]] = {}
        self._made: tuple[str, Mapping[str, str]] | None = None
        self._teacher_json = teacher.to_json() if teacher else ""

    def metric(self, name: str) -> Metric:
        """The metric of that name; ConfigurationError where there is none, or where it cannot measure the subject."""
        if name not in self._metrics:
            self._metrics[name] = make_metric(name, self._setting)
        return self._metrics[name]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of those that were asked for."""
        return tuple(self._metrics)

    @cached_property
    def _stored(self) -> set[str]:
        # This process is the only writer: what it did not find at the start or write itself is not there.
        return set(self.store.moments.read(columns=["base"]).column("base").to_pylist())

    # -- addresses ------------------------------------------------------------------------------------

    def key(self, point: Point, rung: Rung) -> str:
        """Content address of one evaluation."""
        metric = self.metric(rung.metric)
        own = metric.address(point, rung.images, rung.seed, rung.arguments)
        if own is not None:
            return content_key(**own)
        # Where parts are kept, the teacher is a part of their address already.
        taught = {} if metric.taught and metric.grows else {"teacher": self._taught_by(metric)}
        rest = {"images": rung.images, **metric.standard, **taught, **rung.arguments}
        rest |= {name: self.metric(name).standard for name in rung.also}
        return self._addressed(point, rung, rest, lambda: self._stored_keys)

    def base(self, point: Point, rung: Rung) -> str:
        """Content address of the parts, whatever their number."""
        return self._addressed(point, rung, {}, lambda: self._stored)

    def _addressed(self, point: Point, rung: Rung, rest: Mapping[str, object], stored: Callable[[], set[str]]) -> str:
        """The address; where rows lie under the one that a named calibration schedule used to give, that one."""
        made_by = self._made_by(point, rung)
        if quantization_of(point) is None or not self._calibrations:
            return content_key(**made_by, **rest)
        config = f"{made_by['quantization']} "
        found = [content_key(**{**made_by, "quantization": config + c}, **rest) for c in self._calibrations]
        return found[-1] if len(found) > 1 and found[-1] in stored() else found[0]

    @cached_property
    def _calibrations(self) -> list[str]:
        """Content addresses of the calibration schedule: of its decisions, and of it with its name as it used to be."""
        text = self.subject.calibration
        if not text:
            return [_digest("")]
        plain = SolverSchedule.from_json(text).model_copy(update={"name": "", "provenance": {}})
        return list(dict.fromkeys((_digest(plain.to_json()), _digest(text))))

    @cached_property
    def _stored_keys(self) -> set[str]:
        return set(self.store.evaluations.read(columns=["key"]).column("key").to_pylist())

    def _made_by(self, point: Point, rung: Rung) -> dict[str, object]:
        """What decides about each image's features. Conditions and statistics count where there are any."""
        parts: dict[str, object] = {
            "model": self.files.hash,
            "candidate": sampling_part(point).hash,
            "seed": rung.seed,
            **self.metric(rung.metric).identity,
        }
        if asked := self.subject.conditions.hash:
            parts["conditions"] = asked
        if self.statistics_hash and point.needs_statistics:
            parts["statistics"] = self.statistics_hash
        metric = self.metric(rung.metric)
        if metric.taught and metric.grows:
            parts["teacher"] = self._taught_by(metric)
        if metric.controlled:
            # Its parts are no whole groups, which more images could go on from.
            parts["few"] = rung.images
        if self.subject.runtime != "reference":
            parts["runtime"] = self.subject.runtime
        return parts | {part.kind: part.hash for part in point.parts if part.changes_network}

    def _taught_by(self, metric: Metric) -> str:
        """Hash of the teacher that a metric compares with; empty for one that compares with none."""
        return self.teacher.hash if metric.taught and self.teacher else ""

    # -- tasks ----------------------------------------------------------------------------------------

    def plan(self, candidate: Candidate, rung: Rung) -> list[Task]:
        """Tasks still to be run; `absorb` returns the record when the last of them is in.

        Never empty: where every image is known already, the last group is run again.
        """
        key, text = self.key(candidate.point, rung), candidate.point.to_json()
        base = self.base(candidate.point, rung) if self.metric(rung.metric).grows else ""
        also = {name: self.base(candidate.point, _by(rung, name)) for name in rung.also}
        runs = self._runs([base, *also.values()], rung)
        if self.metric(rung.metric).taught and not self._teacher_json:
            raise ConfigurationError(f"metric {rung.metric} compares with a teacher, and there is none here")
        taught = {"teacher": self._teacher_json} if self.metric(rung.metric).taught else {}
        arguments = dict(rung.arguments) | taught
        tasks = [Task(key, rung.metric, text, rung.seed, first, count, arguments, rung.also) for first, count in runs]
        self._pending[key] = _Pending(candidate, rung, base, {t.start for t in tasks}, also)
        return tasks

    def images_of(self, point: Point, rung: Rung) -> int:
        """Images that an evaluation would make: those that are not kept from a smaller one."""
        base = self.base(point, rung) if self.metric(rung.metric).grows else ""
        also = [self.base(point, _by(rung, name)) for name in rung.also]
        return sum(count for _, count in self._runs([base, *also], rung))

    def _runs(self, bases: Sequence[str], rung: Rung) -> list[tuple[int, int]]:
        """(first, count) of the images to make; `bases` are those of the parts, where they are kept."""
        if not all(bases):
            return [(0, rung.images)]
        every = [self._known(base) for base in bases]
        starts = [s for s in range(0, rung.images, GROUP) if not all(_covers(k, s, rung.images) for k in every)]
        starts = starts or [(rung.images - 1) // GROUP * GROUP]
        return [(a, min(b + GROUP, rung.images) - a) for a, b in _runs(starts, IMAGES_PER_TASK)]

    def parts(self, point: Point, rung: Rung) -> list[Part]:
        """The stored parts of a whole evaluation, in order; KeyError where one is missing."""
        known = self._known(self.base(point, rung))
        return [known[start] for start in range(0, rung.images - GROUP + 1, GROUP)]

    def has_parts(self, point: Point, rung: Rung) -> bool:
        """Whether all of them are stored; a metric that does not grow has none, and has them all."""
        if not self.metric(rung.metric).grows:
            return True
        known = self._known(self.base(point, rung))
        return all(start in known for start in range(0, rung.images - GROUP + 1, GROUP))

    def adopt(self, rows: Sequence[MomentsRecord]) -> list[MomentsRecord]:
        """Parts that were made elsewhere, for the caller to write: those that are not stored here yet."""
        new = [row for row in rows if row.start not in self._known(row.base)]
        for row in new:
            self._stored.add(row.base)
            self._known(row.base)[row.start] = _part(row)
        return new

    def _known(self, base: str) -> dict[int, Part]:
        if base not in self._parts:
            rows = self.store.moments.records(where={"base": base}) if base in self._stored else []
            self._parts[base] = {row.start: _part(row) for row in rows}
            sizes = [sum(map(_bytes, parts.values())) for parts in self._parts.values()]
            while len(sizes) > FEWEST_RECENT and (len(sizes) > RECENT or sum(sizes) > RECENT_BYTES):
                del self._parts[next(iter(self._parts))], sizes[0]
        return self._parts[base]

    # -- results --------------------------------------------------------------------------------------

    def absorb(self, result: TaskResult, order: int) -> tuple[EvaluationRecord | None, list[MomentsRecord]]:
        """Take a task's result: its new parts, and the evaluation's record once it is complete.

        A result that nobody waits for (delivered twice, or late) is ignored.
        """
        pending = self._pending.get(result.task.key)
        if pending is None or result.task.start not in pending.missing:
            return None, []
        pending.missing.discard(result.task.start)
        pending.results[result.task.start] = result
        rows = self._new_parts(pending.base, result.parts) if pending.base else []
        for name, base in pending.also.items():
            rows += self._new_parts(base, result.also.get(name, ()))
        pending.calls += result.denoiser_calls
        pending.seconds += result.seconds
        pending.device = result.device
        pending.versions |= result.versions
        self._made = result.device, result.versions
        pending.figures |= result.figures
        error = result.error
        if result.transient and not may_succeed(error):
            error = given_up("machine failed", 1, error)
        if error and (not pending.error or may_succeed(pending.error)):
            # What is the candidate's for good says more than what was the machine's.
            pending.error = error
        if pending.missing:
            return None, rows
        del self._pending[result.task.key]
        return self._record(result.task.key, pending, order), rows

    def scored(self, candidate: Candidate, rung: Rung, order: int) -> EvaluationRecord | None:
        """The record of an evaluation whose images were all measured by others before it; None where some are missing.

        It costs nothing, and was made by the machine whose results were absorbed last: None before any.
        """
        if self._made is None or not self.metric(rung.metric).grows or not self.has_parts(candidate.point, rung):
            return None
        if rung.images % GROUP:
            return None
        base = self.base(candidate.point, rung)
        pending = _Pending(candidate, rung, base, set(), device=self._made[0], versions=dict(self._made[1]))
        return self._record(self.key(candidate.point, rung), pending, order)

    def _new_parts(self, base: str, parts: Sequence[Part]) -> list[MomentsRecord]:
        known, rows = self._known(base), []
        for part in parts:
            # A short last group is not stored: a larger evaluation must be able to replace it.
            if part.count < GROUP and FEATURES not in part.values:
                continue
            if part.start in known and known[part.start].count >= part.count:
                continue
            self._stored.add(base)
            rows.append(_row(base, part))
            known[part.start] = part
        return rows

    def _record(self, key: str, pending: _Pending, order: int) -> EvaluationRecord:
        candidate, rung, metric = pending.candidate, pending.rung, self.metric(pending.rung.metric)
        score: Score | None = None
        if not pending.error:
            try:
                score = self._score(metric, pending)
                for name in pending.also:
                    pending.figures |= _ends(figure_name(name), self._also(pending, name))
            except EvaluationError as error:
                pending.error = str(error)
            except Exception as error:
                # One candidate's figures must not end the search, now and whenever it is gone on with.
                pending.error = f"its {metric.figure} cannot be worked out: {told(error)}"
        made = next((r.point for r in pending.results.values() if r.point), "")
        if made:
            candidate = Candidate(candidate.trial, parse_point(made), candidate.origin, candidate.parameters)
        figures = pending.figures | dict(score.figures) if score else dict(pending.figures)
        return EvaluationRecord(
            study=self.study,
            order=order,
            trial=candidate.trial,
            key=key,
            candidate=candidate.hash,
            candidate_json=candidate.point.to_json(),
            nfe=_calls_of(candidate.point, figures),
            rung=rung.name,
            origin=candidate.origin,
            model=self.files.name,
            model_hash=self.files.hash,
            features=metric.features,
            reference=metric.reference,
            seed=rung.seed,
            images=int(figures.get("images", rung.images)),
            metric=metric.figure,
            value=score.value if score else None,
            low=score.low if score else None,
            high=score.high if score else None,
            metrics=figures,
            denoiser_calls=pending.calls,
            seconds=pending.seconds,
            device=pending.device,
            status="failed" if pending.error else "complete",
            error=pending.error,
            parameters=candidate.parameters,
            versions={"fewstep": __version__, "python": platform.python_version(), **pending.versions},
            finished_at=datetime.now(UTC),
        )

    def _score(self, metric: Metric, pending: _Pending) -> Score:
        parts = [*self._control(pending.rung), *self._all_parts(pending)]
        score = metric.score(parts, pending.figures)
        if not math.isfinite(score.value):
            raise EvaluationError(f"its {metric.figure} is {score.value}, which is no figure")
        return score

    def _also(self, pending: _Pending, name: str) -> Score:
        """What another metric says of the same images."""
        fresh = {part.start: part for result in pending.results.values() for part in result.also.get(name, ())}
        known = self._known(pending.also[name]) | fresh
        return self.metric(name).score([known[start] for start in range(0, pending.rung.images, GROUP)], {})

    def _control(self, rung: Rung) -> list[Part]:
        """The parts of what controls a rung: those of the metric that is guessed, and those of the rung's own."""
        metric = self.metric(rung.metric)
        if not metric.controlled:
            return []
        point, name = parse_point(rung.arguments[CONTROL]), metric.controlled
        asked = f"{name}:{metric.argument}" if metric.argument else name
        whole = Rung(rung.name, asked, int(rung.arguments[OF]), rung.seed)
        try:
            few = self._known(self.base(point, rung))
            return [*self.parts(point, whole), *(few[start] for start in range(0, rung.images, GROUP))]
        except KeyError as error:
            raise EvaluationError("what controls it has lost its parts: search it anew") from error

    def _all_parts(self, pending: _Pending) -> Sequence[Part]:
        fresh = {part.start: part for result in pending.results.values() for part in result.parts}
        if not pending.base:
            return [fresh[start] for start in sorted(fresh)]
        known = self._known(pending.base) | fresh
        return [known[start] for start in range(0, pending.rung.images, GROUP)]


def _ends(name: str, score: Score) -> dict[str, float]:
    """A score as figures: its value, and the ends of its interval where it has one."""
    ends = {f"{name}-low": score.low, f"{name}-high": score.high}
    return {name: score.value} | {end: value for end, value in ends.items() if value is not None}


def _by(rung: Rung, metric: str) -> Rung:
    """The same images by another metric."""
    return replace(rung, metric=metric, also=(), arguments={})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _calls_of(point: Point, figures: Mapping[str, float]) -> int:
    """NFE of a record: a schedule's own; an ODE solver's or an edit's as counted, to the nearest whole number."""
    counted = isinstance(sampling_part(point), OdePoint) or point.kind == "edit"
    return round(figures.get("nfe", point.nfe)) if counted else point.nfe


def _covers(known: Mapping[int, Part], start: int, images: int) -> bool:
    return start in known and known[start].count == min(GROUP, images - start)


def _bytes(part: Part) -> int:
    return sum(v.nbytes for v in part.values.values()) + (part.moments.scatter.nbytes if part.moments else 0)


def _part(row: MomentsRecord) -> Part:
    if row.dim and not row.scatter:
        features = np.frombuffer(row.mean, "<f8").reshape(row.count, row.dim)
        return Part(row.start, row.count, None, row.sums, {FEATURES: features})
    moments = Moments.from_bytes(row.mean, row.scatter, row.count, row.dim) if row.dim else None
    return Part(row.start, row.count, moments, row.sums)


def _row(base: str, part: Part) -> MomentsRecord:
    if FEATURES in part.values:
        features = np.ascontiguousarray(part.values[FEATURES], "<f8")
        return MomentsRecord(base, part.start, part.count, features.shape[1], features.tobytes(), b"", dict(part.sums))
    if part.moments is None:
        return MomentsRecord(base, part.start, part.count, 0, b"", b"", dict(part.sums))
    mean, scatter = part.moments.to_bytes()
    return MomentsRecord(base, part.start, part.count, part.moments.dim, mean, scatter, dict(part.sums))


def _runs(starts: list[int], images: int) -> list[tuple[int, int]]:
    """(first, last) of runs of consecutive groups, none longer than `images`."""
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and start == runs[-1][1] + GROUP and start + GROUP - runs[-1][0] <= images:
            runs[-1] = (runs[-1][0], start)
        else:
            runs.append((start, start))
    return runs
