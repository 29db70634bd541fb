"""From an edit and a rung to a task, and from its result to a record.

A record's value is the imbalance, 1 - the harmonic mean of success and identity: what is chosen by, where one figure
has to decide. Its objectives, success, identity and calls, are among its metrics.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fewstep import __version__
from fewstep.pipeline.evaluator import Candidate, content_key
from fewstep.pipeline.ladder import Rung
from fewstep.search_spaces.edit import EditConfig
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.tasks.editing.path import segment
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.editing.worker import EditOrder
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.worker import Task, TaskResult

REPORT = "report"
Objectives = tuple[float, float, float]


@dataclass(frozen=True)
class EditCandidate(Candidate):
    """An edit under evaluation; `schedule` is its way back."""

    edit: EditConfig | None = None

    @property
    def config(self) -> EditConfig:
        """The edit."""
        assert self.edit is not None
        return self.edit

    @property
    def hash(self) -> str:
        """Content address of the edit."""
        return self.config.hash


def balance(success: float, identity: float) -> float:
    """The harmonic mean of the two, 0 where one of them is not positive."""
    return 2 * success * identity / (success + identity) if success > 0 and identity > 0 else 0.0


def objectives(record: EvaluationRecord | None) -> Objectives | None:
    """Failure, loss of identity and calls, all to be small; None without a complete record."""
    if record is None or record.status != "complete":
        return None
    return 1 - record.metrics["success"], 1 - record.metrics["identity"], record.metrics["nfe"]


def edit_candidate(
    trial: int, edit: EditConfig, origin: str, parameters: dict[str, Any], files: ModelFiles
) -> EditCandidate:
    """A candidate; ScheduleError where its way back does not fit the model."""
    return EditCandidate(trial, segment(edit.generation, files.noise, edit.step), origin, parameters, edit=edit)


class EditEvaluator:
    """Plans and scores edits of one subject."""

    def __init__(self, study: str, subject: EditSubject, files: ModelFiles) -> None:
        self.study, self.subject, self.files = study, subject, files
        self._pending: dict[str, tuple[EditCandidate, Rung]] = {}

    def key(self, candidate: EditCandidate, rung: Rung) -> str:
        """Content address of an evaluation."""
        return content_key(
            model=self.files.hash,
            subject=self.subject.model_dump_json(),
            edit=candidate.hash,
            images=rung.images,
            part=REPORT if rung.name == REPORT else "search",
        )

    def plan(self, candidate: Candidate, rung: Rung) -> list[Task]:
        """One task an evaluation."""
        assert isinstance(candidate, EditCandidate)
        key = self.key(candidate, rung)
        self._pending[key] = candidate, rung
        order = EditOrder(config=candidate.config, part="report" if rung.name == REPORT else "search")
        return [Task(key, "edit", "", rung.seed, 0, rung.images, edit=order.model_dump_json())]

    def absorb(self, result: TaskResult, order: int) -> tuple[EvaluationRecord | None, list[MomentsRecord]]:
        """The record of a result; one that nobody waits for is ignored."""
        found = self._pending.pop(result.task.key, None)
        if found is None:
            return None, []
        candidate, rung = found
        figures = result.metrics
        value = None if result.error else 1 - balance(figures["success"], figures["identity"])
        record = EvaluationRecord(
            study=self.study,
            order=order,
            trial=candidate.trial,
            key=result.task.key,
            candidate=candidate.hash,
            candidate_json=candidate.schedule.to_json(),
            nfe=int(figures.get("nfe", candidate.schedule.nfe)),
            rung=rung.name,
            origin=candidate.origin,
            model=self.files.name,
            model_hash=self.files.hash,
            features=self.subject.features,
            reference=self.subject.attribute,
            seed=rung.seed,
            images=int(figures.get("images", rung.images)),
            metric=rung.metric,
            value=value,
            low=None,
            high=None,
            metrics={name: number for name, number in figures.items() if number == number},
            denoiser_calls=result.denoiser_calls,
            seconds=result.seconds,
            device=result.device,
            status="failed" if result.error else "complete",
            error=result.error,
            parameters=candidate.parameters | {CONFIG: candidate.config.model_dump(mode="json")},
            versions={"fewstep": __version__, "python": platform.python_version(), **result.versions},
            finished_at=datetime.now(UTC),
        )
        return record, []


# What a record's parameters hold besides what the sampler drew.
CONFIG, SAMPLER_NOTE = "edit", "sampler_note"


def candidate_of(record: EvaluationRecord, files: ModelFiles) -> EditCandidate:
    """The candidate that a record is about."""
    given = dict(record.parameters)
    edit = EditConfig.build(**given.pop(CONFIG))
    return edit_candidate(record.trial, edit, record.origin, given, files)
