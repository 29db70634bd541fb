"""What guidance does to a sampler: the judge's accuracy and the Frechet distance at each scale, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.baseline import register
from fewstep.pipeline.campaign import Subject, evaluate_missing
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.settings import REPORT_SEED_OFFSET
from fewstep.search_spaces.ode import (
    ADAPTIVE,
    FIXED_CALLS,
    OdeSettings,
    Sampler,
    parse_ode,
    parse_sampler,
    with_guidance,
)
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.sampling.grids import parse_schedule

STUDY = "guidance-table"


class GuidanceTableSettings(BaseModel):
    """Everything that decides what the table holds. `samplers` are (method, JSON) pairs, each sampled at all scales."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    judge: str
    samplers: tuple[tuple[str, str], ...]
    scales: tuple[float, ...] = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
    labels: str = "balanced"
    features: str = "auto"
    reference: str = "auto"
    images: PositiveInt = 5000
    seed: NonNegativeInt = 0

    @property
    def rung(self) -> Rung:
        """Report noise."""
        return Rung("report", "moments", self.images, self.seed + REPORT_SEED_OFFSET)

    @property
    def subject(self) -> Subject:
        """What is evaluated; scales come with the samplers."""
        asked = Conditions(labels=self.labels)
        return Subject(self.model, self.features, self.reference, asked, judge=self.judge)


@dataclass(frozen=True)
class GuidanceRow:
    """One sampler at one scale: 0 asks for nothing, 1 asks for the label without guidance."""

    model: str
    method: str
    guidance: float
    nfe: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    schedule: str


def parse_any(text: str, files: ModelFiles) -> Sampler:
    """`dopri5`, a fixed-step ODE solver as `heun@6`, PRESET/GRID@CALLS, or a schedule's file."""
    method = text.partition("@")[0]
    if method == ADAPTIVE or (method in FIXED_CALLS and text != method):
        return parse_ode(text)
    return parse_schedule(text, files.noise)


def run(
    settings: GuidanceTableSettings,
    root: Path,
    execution: ExecutionSettings,
    on_record: OnRecord | None = None,
) -> list[GuidanceRow]:
    """Evaluate what is missing; EvaluationError where one of them cannot be evaluated."""
    if not settings.samplers or not settings.scales:
        raise ConfigurationError("there is nothing to compare: give at least one sampler and one scale of guidance")
    if any(scale < 0 for scale in settings.scales):
        raise ConfigurationError(f"scales of guidance {settings.scales}: none may be negative")
    register(settings, settings.model, root, STUDY)
    samplers = [(method, parse_sampler(text)) for method, text in settings.samplers]
    entries = [(method, sampler, scale) for method, sampler in samplers for scale in settings.scales]
    work = [(with_guidance(sampler, scale), f"{method}:{scale:g}") for method, sampler, scale in entries]
    records = evaluate_missing(settings.subject, work, settings.rung, root, execution, STUDY, on_record)
    return [_row(record, *entry) for record, entry in zip(records, entries, strict=True)]


def _row(record: EvaluationRecord, method: str, sampler: Sampler, scale: float) -> GuidanceRow:
    if record.value is None:
        raise EvaluationError(f"{method} at guidance {scale:g} has no value: {record.error}")
    m = record.metrics
    return GuidanceRow(
        model=record.model,
        method=method,
        guidance=scale,
        nfe=m.get("nfe", float(record.nfe)),
        accuracy=m["accuracy"],
        accuracy_low=m["accuracy_low"],
        accuracy_high=m["accuracy_high"],
        metric=record.features,
        value=record.value,
        low=record.low,
        high=record.high,
        images=record.images,
        schedule=sampler.name if isinstance(sampler, OdeSettings) else sampler.name or sampler.hash,
    )


def markdown(rows: Sequence[GuidanceRow], note: str) -> str:
    """A row a scale, two columns a sampler: accuracy and distance, each with its interval."""
    methods = list(dict.fromkeys(r.method for r in rows))
    cells = {(r.method, r.guidance): r for r in rows}
    heads = [f"{m}: accuracy | {m}: {rows[0].metric}" for m in methods]
    lines = ["| guidance | " + " | ".join(heads) + " |", "|---" * (2 * len(methods) + 1) + "|"]
    for scale in sorted({r.guidance for r in rows}):
        texts = []
        for method in methods:
            row = cells[method, scale]
            ends = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
            accuracy = f"{row.accuracy:.3f} ({row.accuracy_low:.3f} to {row.accuracy_high:.3f})"
            texts.append(f"{accuracy} | {row.value:.2f}{ends}")
        lines.append(f"| {scale:g} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", note])
