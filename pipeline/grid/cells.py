"""The cells of a grid: every combination of its axes that can be, and what is left out for which reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.grid.schedules import Timed, all_entries, entries, timed
from fewstep.pipeline.grid.settings import AXES, NO_QUANTIZATION, GridSettings
from fewstep.pipeline.subjects import subject_of, teacher_of
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import Point, QuantizationPoint, as_point, joint
from fewstep.search_spaces.quantization import QuantizationConfig, parse_config
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.measured_settings import MeasuredSettings
from fewstep.tasks.metrics.metric import Setting, make_metric
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.work import Subject

# What networks are calibrated along where the settings do not say, at the most calls of the grid: as searches do it.
CALIBRATION_PRESET = "unipc-2-bh2/karras-zero"
RUNG = "grid"
Value = str | int | float


@dataclass(frozen=True)
class Cell:
    """One combination: a value of each axis, in their order, and what is evaluated for it."""

    values: tuple[Value, ...]
    point: Point
    rung: Rung
    origin: str

    @property
    def axes(self) -> dict[str, Value]:
        """Values by axis."""
        return dict(zip(AXES, self.values, strict=True))

    @property
    def name(self) -> str:
        """The values as one text, which patterns select by."""
        return "/".join(map(shown, self.values))


@dataclass(frozen=True)
class LeftOut:
    """Combinations that cannot be, by the axes that decide it, how many cells they would be, and why."""

    axes: Mapping[str, Value]
    cells: int
    reason: str


@dataclass
class Group:
    """The cells of one subject, which share workers. `teacher` is what its metrics compare with, if they do."""

    subject: Subject
    teacher: SolverSchedule | None
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Cells:
    """A grid's cells by subject, and what is left out."""

    groups: list[Group] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def __iter__(self) -> Iterator[Cell]:
        return (cell for group in self.groups for cell in group.cells)


def shown(value: Value) -> str:
    """A value as names and tables have it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def told_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """What is left out, a line a reason: how many cells, the first of them, and why."""
    by_reason: dict[str, list[LeftOut]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one)
    lines = []
    for reason, held in by_reason.items():
        first = ", ".join(f"{axis} {shown(value)}" for axis, value in held[0].axes.items())
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        lines.append(f"{sum(one.cells for one in held):,} cells ({first}{more}): {reason}")
    return lines


def cells_of(settings: GridSettings, loaded: dict[tuple[str, ...], Any] | None = None) -> Cells:
    """All combinations; ConfigurationError where a value is unknown, or makes no cell at all.

    What metrics load to check themselves is kept in `loaded`, see `Setting`.
    """
    asked = all_entries(settings.schedules, settings.nfes)
    configs = {text: _config(text) for text in settings.quantization}
    made = Cells()
    for model in settings.models:
        try:
            plain = settings.of_model(model, 1.0, settings.metrics)
            files = plain.files
            statistics = ModelStatistics.load_for(Path(plain.statistics), files) if plain.statistics else None
        except FewstepError as error:
            # A mistake, whatever the other models are.
            raise ConfigurationError(f"model {model!r}: {error}") from None
        maker = _OfModel(settings, model, timed(asked, settings.nfes, files, statistics), configs, loaded)
        for quantization in settings.quantization:
            for guidance in settings.guidance:
                maker.fill(made, quantization, guidance)
    made.groups = _merged(made.groups)
    _check_axes(settings, made)
    return made


class _OfModel:
    """Makes the cells of one model."""

    def __init__(
        self,
        settings: GridSettings,
        model: str,
        schedules: Sequence[Timed],
        configs: Mapping[str, QuantizationConfig | None],
        loaded: dict[tuple[str, ...], Any] | None,
    ) -> None:
        self._loaded = {} if loaded is None else loaded
        self.settings, self.model, self.schedules, self.configs = settings, model, schedules, configs
        # By metric why it cannot be measured; empty where it can. Neither guidance nor bits decide that.
        self._unmeasured: dict[str, str] = {}

    def fill(self, made: Cells, quantization: str, guidance: float) -> None:
        """Those of one quantisation and one scale of guidance."""
        s, config = self.settings, self.configs[quantization]
        plain: dict[str, Value] = {"model": self.model, "quantization": quantization, "guidance": guidance}
        folder = "" if config is not None or quantization == NO_QUANTIZATION else quantization
        try:
            asked = s.of_model(self.model, guidance, s.metrics, folder)
            files = asked.files
            asked.conditions.check(files)
            if config is not None:
                _check_config(asked, files)
        except FewstepError as error:
            made.left_out.append(LeftOut(plain, len(self.schedules) * len(s.seeds) * len(s.metrics), str(error)))
            return
        group = Group(self._subject(asked, files), teacher_of(asked))
        reasons = {metric: self._unmeasurable(metric, group.subject, files) for metric in s.metrics}
        metrics = [metric for metric, reason in reasons.items() if not reason]
        made.left_out += [
            LeftOut({**plain, "metric": metric}, len(self.schedules) * len(s.seeds), reason)
            for metric, reason in reasons.items()
            if reason
        ]
        for one in self.schedules:
            if one.schedule is None:
                at = {**plain, "schedule": one.name, "nfe": one.nfe}
                made.left_out.append(LeftOut(at, len(s.seeds) * len(metrics), one.reason))
                continue
            changed = [QuantizationPoint(config=config)] if config is not None else []
            point = joint(as_point(one.schedule), *changed)
            for metric in metrics:
                for seed in s.seeds:
                    values = (self.model, one.name, one.nfe, quantization, guidance, seed, metric)
                    group.cells.append(Cell(values, point, Rung(RUNG, metric, s.images, seed), one.origin))
        made.groups.append(group)

    def _unmeasurable(self, metric: str, subject: Subject, files: ModelFiles) -> str:
        if metric not in self._unmeasured:
            try:
                make_metric(metric, Setting(subject, files, loaded=self._loaded)).check()
                self._unmeasured[metric] = ""
            except FewstepError as error:
                self._unmeasured[metric] = str(error)
        return self._unmeasured[metric]

    def _subject(self, asked: MeasuredSettings, files: ModelFiles) -> Subject:
        """What is evaluated, with the schedule that configs are calibrated along where there are any."""
        subject, s = subject_of(asked), self.settings
        if asked.quantized or not any(self.configs.values()):
            return subject
        most = max(one.nfe for one in self.schedules)
        text = s.calibration or f"{CALIBRATION_PRESET}@{most}"
        return replace(subject, calibration=parse_schedule(text, files.noise).to_json())


def _merged(groups: Sequence[Group]) -> list[Group]:
    """One group a subject: what differs in its points alone shares workers."""
    found: dict[Subject, Group] = {}
    for group in groups:
        found.setdefault(group.subject, Group(group.subject, group.teacher)).cells.extend(group.cells)
    return [group for group in found.values() if group.cells]


def _config(text: str) -> QuantizationConfig | None:
    """The config of a value of the quantisation axis; None for none and for a folder."""
    if text == NO_QUANTIZATION or Path(text).is_dir():
        return None
    return parse_config(text)


def _check_config(asked: MeasuredSettings, files: ModelFiles) -> None:
    if files.piped:
        raise ConfigurationError(
            f"{files.name} is called as a whole pipeline, whose network cannot be quantised: leave quantization out"
        )
    if asked.loading.dtype != "float32":
        raise ConfigurationError(
            f"a quantised network is held in float32: leave dtype {asked.loading.dtype} or quantization out"
        )


def _check_axes(settings: GridSettings, made: Cells) -> None:
    """ConfigurationError for a value that was named and makes no cell, with the reason."""
    there = {axis: {cell.values[i] for cell in made} for i, axis in enumerate(AXES)}
    # What is left out for its metric or schedule says so; else it is the model's, its guidance's or its bits'.
    for axis in ("metric", "schedule", "model", "nfe", "quantization", "guidance", "seed"):
        for value in getattr(settings, AXES[axis]):
            names = {one.name for one in entries(value)} if axis == "schedule" else {value}
            told = made.left_out if axis in ("model", "nfe", "seed") else [o for o in made.left_out if axis in o.axes]
            reasons = [one.reason for one in told if one.axes.get(axis, value) in names]
            if reasons and not names & there[axis]:
                raise ConfigurationError(f"{axis} {shown(value)} makes no cell: {reasons[-1]}")
    if settings.calibration and not any(map(_config, settings.quantization)):
        raise ConfigurationError(
            f"calibration {settings.calibration}: no value of quantization is a config, leave calibration out"
        )
