"""From a candidate and a rung to tasks, and from task results to one record.

Evaluations are content-addressed: the key names model, candidate, noise, image count, features and
reference. Moments are addressed without the image count, so a larger evaluation computes only what is new.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fewstep import __version__
from fewstep.errors import EvaluationError
from fewstep.pipeline.ladder import Rung
from fewstep.search_spaces.ode import OdeSettings, Sampler
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import frechet_interval, share_interval
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.metrics.reference import load_reference
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.judge import judge_hash
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.worker import CALLS, GROUP, RIGHT, Task, TaskResult

IMAGES_PER_TASK = 1000
CONFIDENCE = 0.95
# Candidates whose moments stay in memory; others are read back from the store when they grow.
RECENT = 64


@dataclass(frozen=True)
class Candidate:
    """A schedule under evaluation, with a quantisation where that is searched too, and who proposed it."""

    trial: int
    schedule: SolverSchedule
    origin: str
    parameters: dict[str, Any] = field(default_factory=dict)
    quantization: QuantizationConfig | None = None

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits."""
        if self.quantization is None:
            return self.schedule.hash
        return content_key(schedule=self.schedule.hash, quantization=self.quantization.hash)[:16]


@dataclass(frozen=True)
class OdeCandidate:
    """An ODE solver under evaluation, as a candidate that no search proposes."""

    trial: int
    schedule: OdeSettings
    origin: str
    parameters: dict[str, Any] = field(default_factory=dict)
    quantization: None = None

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits."""
        return self.schedule.hash


def candidate_from(trial: int, sampler: Sampler, origin: str) -> Candidate | OdeCandidate:
    """The candidate of a schedule or of an ODE solver."""
    if isinstance(sampler, OdeSettings):
        return OdeCandidate(trial, sampler, origin)
    return Candidate(trial, sampler, origin)


@dataclass
class _Pending:
    candidate: Candidate | OdeCandidate
    rung: Rung
    base: str
    missing: set[int]
    calls: int = 0
    seconds: float = 0.0
    device: str = ""
    error: str = ""
    results: dict[int, TaskResult] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def content_key(**parts: object) -> str:
    """32 hex digits that name the parts."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Evaluator:
    """Plans evaluations against one model and reference, and scores them."""

    def __init__(
        self,
        study: str,
        files: ModelFiles,
        store: Store,
        features: str = "auto",
        reference: str = "auto",
        teacher: SolverSchedule | None = None,
        conditions: Conditions | None = None,
        statistics: str = "",
        calibration: str = "",
        runtime: str = "reference",
        judge: str = "",
    ) -> None:
        """`calibration` is the schedule (JSON) under which the quantisations of candidates are calibrated.

        With a `judge` records hold `accuracy`, the share of images that show the label they were asked for.
        """
        self._runtime = runtime
        self._judge_hash = judge_hash(judge) if judge else ""
        self.study, self.files, self.store, self.teacher = study, files, store, teacher
        self._calibration_hash = hashlib.sha256(calibration.encode()).hexdigest()[:16]
        self._conditions_hash = conditions.hash if conditions else ""
        self._statistics_hash = ModelStatistics.load_for(Path(statistics), files).hash if statistics else ""
        extractor = make_extractor(features, files, "cpu")
        moments, self.reference_hash = load_reference(reference, files, features, extractor)
        self.features, self.features_hash = extractor.name, extractor.hash
        self.reference = FrechetReference.of(moments)
        self._pending: dict[str, _Pending] = {}
        self._moments: dict[str, dict[int, Moments]] = {}
        self._sums: dict[str, dict[int, dict[str, float]]] = {}
        # This process is the only writer: what it did not find at the start or write itself is not there.
        self._stored = set(store.moments.read(columns=["base"]).column("base").to_pylist())
        self._teacher_json = teacher.to_json() if teacher else ""

    def key(self, schedule: Sampler, rung: Rung, quantization: QuantizationConfig | None = None) -> str:
        """Content address of one evaluation."""
        teacher = self.teacher.hash if rung.kind in ("distance", "refine") and self.teacher else ""
        return content_key(
            **self._made_by(schedule, rung, quantization),
            images=rung.images,
            kind=rung.kind,
            reference=self.reference_hash,
            teacher=teacher,
            **({"plan": rung.plan} if rung.plan else {}),
        )

    def base(self, schedule: Sampler, rung: Rung, quantization: QuantizationConfig | None = None) -> str:
        """Content address of the moments, whatever their number."""
        return content_key(**self._made_by(schedule, rung, quantization))

    def _made_by(self, schedule: Sampler, rung: Rung, quantization: QuantizationConfig | None) -> dict[str, object]:
        """What decides about each image's features. Conditions and statistics count where there are any."""
        parts: dict[str, object] = {
            "model": self.files.hash,
            "candidate": schedule.hash,
            "seed": rung.seed,
            "features": self.features_hash,
        }
        if self._conditions_hash:
            parts["conditions"] = self._conditions_hash
        if self._statistics_hash and schedule.needs_statistics:
            parts["statistics"] = self._statistics_hash
        if self._runtime != "reference":
            parts["runtime"] = self._runtime
        if self._judge_hash:
            parts["judge"] = self._judge_hash
        if quantization is not None:
            parts["quantization"] = f"{quantization.hash} {self._calibration_hash}"
        return parts

    def plan(self, candidate: Candidate | OdeCandidate, rung: Rung) -> list[Task]:
        """Tasks still to be run; `absorb` returns the record when the last of them is in.

        Never empty: where every image is known already, the last group is run again.
        """
        schedule, config = candidate.schedule, candidate.quantization
        key, base, text = self.key(schedule, rung, config), self.base(schedule, rung, config), schedule.to_json()
        quantization = config.model_dump_json() if config else ""
        if rung.kind == "distance":
            tasks = [Task(key, "distance", text, rung.seed, 0, rung.images, self._teacher_json, quantization)]
        elif rung.kind == "refine":
            tasks = [Task(key, "refine", text, rung.seed, 0, rung.images, self._teacher_json, plan=rung.plan)]
        else:
            known = self._known(base)
            starts = [s for s in range(0, rung.images, GROUP) if not self._covers(known, s, rung.images)]
            starts = starts or [(rung.images - 1) // GROUP * GROUP]
            tasks = [
                Task(
                    key,
                    "moments",
                    text,
                    rung.seed,
                    first,
                    min(last + GROUP, rung.images) - first,
                    quantization=quantization,
                )
                for first, last in _runs(starts, IMAGES_PER_TASK)
            ]
        self._pending[key] = _Pending(candidate, rung, base, {t.start for t in tasks})
        return tasks

    def calls(self, schedule: Sampler, rung: Rung) -> int:
        """Denoiser calls that an evaluation from nothing costs, the teacher not counted."""
        return schedule.nfe * rung.images

    def groups(self, schedule: Sampler, rung: Rung) -> list[Moments]:
        """The stored moments of an evaluation's groups of GROUP images, in order; KeyError where one is missing."""
        known = self._known(self.base(schedule, rung))
        return [known[start] for start in range(0, rung.images - GROUP + 1, GROUP)]

    def _known(self, base: str) -> dict[int, Moments]:
        if base not in self._moments:
            rows = self.store.moments.records(where={"base": base}) if base in self._stored else []
            self._moments[base] = {r.start: Moments.from_bytes(r.mean, r.scatter, r.count, r.dim) for r in rows}
            self._sums[base] = {r.start: r.sums for r in rows}
            for oldest in list(self._moments)[:-RECENT]:
                del self._moments[oldest], self._sums[oldest]
        return self._moments[base]

    @staticmethod
    def _covers(known: dict[int, Moments], start: int, images: int) -> bool:
        return start in known and known[start].count == min(GROUP, images - start)

    def absorb(self, result: TaskResult, order: int) -> tuple[EvaluationRecord | None, list[MomentsRecord]]:
        """Take a task's result: its new moments, and the evaluation's record once it is complete.

        A result that nobody waits for (delivered twice, or late) is ignored.
        """
        pending = self._pending.get(result.task.key)
        if pending is None or result.task.start not in pending.missing:
            return None, []
        pending.missing.discard(result.task.start)
        pending.results[result.task.start] = result
        moments = self._new_moments(pending.base, result)
        pending.calls += result.denoiser_calls
        pending.seconds += result.seconds
        pending.device, pending.versions = result.device, pending.versions | result.versions
        pending.metrics |= result.metrics
        pending.error = pending.error or result.error
        if pending.missing:
            return None, moments
        del self._pending[result.task.key]
        return self._record(result.task.key, pending, order), moments

    def _record(self, key: str, pending: _Pending, order: int) -> EvaluationRecord:
        value = low = high = None
        metrics: dict[str, float] = {}
        if not pending.error:
            try:
                if pending.rung.kind == "distance":
                    value, low, high, metrics = self._score_distance(pending)
                elif pending.rung.kind == "refine":
                    value, metrics = self._take_refined(pending)
                else:
                    value, low, high = self._score_frechet(pending)
                    metrics = self._of_sums(pending)
            except EvaluationError as error:
                pending.error, value, low, high = str(error), None, None, None
        schedule, rung = pending.candidate.schedule, pending.rung
        return EvaluationRecord(
            study=self.study,
            order=order,
            trial=pending.candidate.trial,
            key=key,
            candidate=pending.candidate.hash,
            candidate_json=schedule.to_json(),
            nfe=_calls_of(schedule, metrics),
            rung=rung.name,
            origin=pending.candidate.origin,
            model=self.files.name,
            model_hash=self.files.hash,
            features=self.features,
            reference=self.reference_hash,
            seed=rung.seed,
            images=rung.images,
            metric=rung.metric,
            value=value,
            low=low,
            high=high,
            metrics=pending.metrics | metrics,
            denoiser_calls=pending.calls,
            seconds=pending.seconds,
            device=pending.device,
            status="failed" if pending.error else "complete",
            error=pending.error,
            parameters=pending.candidate.parameters,
            versions={"fewstep": __version__, "python": platform.python_version(), **pending.versions},
            finished_at=datetime.now(UTC),
            quantization=config.model_dump_json() if (config := pending.candidate.quantization) else "",
        )

    def _take_refined(self, pending: _Pending) -> tuple[float, dict[str, float]]:
        """The record of a refinement is about what came of it, not about its start."""
        (result,) = pending.results.values()
        if result.losses is None or isinstance(pending.candidate, OdeCandidate):
            raise EvaluationError("a refinement came back without a schedule")
        pending.candidate = replace(pending.candidate, schedule=SolverSchedule.from_json(result.refined))
        return result.losses[1], {"loss_before": result.losses[0], "loss": result.losses[1]}

    def _score_distance(self, pending: _Pending) -> tuple[float, float, float, dict[str, float]]:
        (result,) = pending.results.values()
        if result.feature is None or result.pixel is None:
            raise EvaluationError("a distance task came back without distances")
        per_image = result.feature
        value, error = float(per_image.mean()), float(per_image.std() / np.sqrt(len(per_image)))
        if not np.isfinite(value):
            raise EvaluationError("the distance to the teacher is not finite")
        metrics = {"feature_distance": value, "pixel_distance": float(result.pixel.mean())}
        return value, value - 1.96 * error, value + 1.96 * error, metrics

    def _new_moments(self, base: str, result: TaskResult) -> list[MomentsRecord]:
        known, records = self._known(base), []
        for i, moments in enumerate(result.moments):
            at = result.task.start + i * GROUP
            # A short last group is not stored: a larger evaluation must be able to replace it.
            if moments.count < GROUP or (at in known and known[at].count == GROUP):
                continue
            mean, scatter = moments.to_bytes()
            self._stored.add(base)
            sums = result.sums[i] if result.sums else {}
            records.append(MomentsRecord(base, at, moments.count, moments.dim, mean, scatter, sums))
            known[at], self._sums[base][at] = moments, sums
        return records

    def _of_sums(self, pending: _Pending) -> dict[str, float]:
        """Mean NFE, and the judge's accuracy with its interval, from the sums of all groups where they are known."""
        self._known(pending.base)
        known = self._sums[pending.base]
        fresh = {start + i * GROUP: sums for start, r in pending.results.items() for i, sums in enumerate(r.sums)}
        images = pending.rung.images
        groups = [(known | fresh).get(start, {}) for start in range(0, images, GROUP)]
        found = {}
        if all(CALLS in sums for sums in groups):
            found["nfe"] = sum(sums[CALLS] for sums in groups) / images
        if all(RIGHT in sums for sums in groups):
            share = share_interval(round(sum(sums[RIGHT] for sums in groups)), images, CONFIDENCE)
            found |= {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}
        return found

    def _score_frechet(self, pending: _Pending) -> tuple[float, float | None, float | None]:
        fresh = {
            start + i * GROUP: moments
            for start, result in pending.results.items()
            for i, moments in enumerate(result.moments)
        }
        known = self._known(pending.base) | fresh
        groups = [known[start] for start in range(0, pending.rung.images, GROUP)]
        interval = frechet_interval(self.reference, groups, CONFIDENCE)
        if interval is None:
            return self.reference.distance(merge_all(groups)), None, None
        return interval.value, interval.low, interval.high


def _calls_of(sampler: Sampler, metrics: dict[str, float]) -> int:
    """NFE of a record: a schedule's own, an ODE solver's as counted, to the nearest whole number."""
    return round(metrics.get("nfe", sampler.nfe)) if isinstance(sampler, OdeSettings) else sampler.nfe


def _runs(starts: list[int], images: int) -> list[tuple[int, int]]:
    """(first, last) of runs of consecutive groups, none longer than `images`."""
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and start == runs[-1][1] + GROUP and start + GROUP - runs[-1][0] <= images:
            runs[-1] = (runs[-1][0], start)
        else:
            runs.append((start, start))
    return runs
