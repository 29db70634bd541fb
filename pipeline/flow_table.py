"""Samplers of a flow side by side: dopri5, fixed-step solvers, the best preset and found schedules, at each NFE.

Without labels and with labels and guidance. Whatever is chosen (grids, presets, scales of guidance) is chosen on search
seeds with `screen_images`; what is shown is computed on report seeds. Every evaluation is kept, so the same command
goes on after a kill, and with more images computes only the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.baseline import GRIDS_TO_ZERO, known_names, register
from fewstep.pipeline.campaign import Subject, evaluate_missing, evaluated_already
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.reports.rows import FOUND, Row
from fewstep.pipeline.settings import REPORT_SEED_OFFSET
from fewstep.search_spaces.ode import ADAPTIVE, FIXED_CALLS, OdeSettings, Sampler, with_guidance
from fewstep.search_spaces.presets import PRESETS, SEARCH_PRESETS
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.conditions import NO_LABEL, Conditions
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.sampling.grids import GRIDS, preset_on_grid
from fewstep.tasks.sampling.stock_flow import is_stock_flow, stock_schedule

STUDY = "flow-table"
Setting = Literal["unconditional", "conditional"]
SETTINGS: tuple[Setting, ...] = ("unconditional", "conditional")
EULER, HEUN, PRESET = "euler", "heun", "preset"
# Scales of guidance are screened with dopri5 at this tolerance: to the Frechet distance it is the same sampler.
SCREEN_TOLERANCE = 1e-3
# All entries of a row are looked at on this part of the screen's images; so many go on to the whole screen.
LOOK, KEPT = 4, 3
Tell = Callable[[str], None]


class FlowTableSettings(BaseModel):
    """Everything that decides what the table holds.

    `found` and `found_conditional` are schedules (JSON) for the two settings, one an NFE; those of the second carry
    their own guidance. With `peer_guidance` every peer gets the scale that is best for it, else dopri5's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    features: str = "auto"
    reference: str = "auto"
    settings: tuple[Setting, ...] = SETTINGS
    labels: str = "balanced"
    judge: str = ""
    nfes: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    presets: tuple[str, ...] = (*SEARCH_PRESETS[1:], "deis-3")
    grids: tuple[str, ...] = GRIDS_TO_ZERO
    guidances: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
    found: tuple[str, ...] = ()
    found_conditional: tuple[str, ...] = ()
    peer_guidance: bool = True
    screen_images: PositiveInt = 1000
    report_images: PositiveInt = 10_000
    tolerance: float = Field(1e-5, gt=0)
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for names, kind, known in ((self.presets, "preset", PRESETS), (self.grids, "grid", GRIDS)):
            known_names(names, kind, tuple(known))
        if not self.settings:
            raise ValueError(f"no setting: choose from {', '.join(SETTINGS)}")
        if "conditional" in self.settings and (self.labels == NO_LABEL or not self.guidances):
            raise ValueError("the conditional setting needs labels, as balanced, and at least one scale of guidance")
        return self

    def subject(self, setting: Setting) -> Subject:
        """What is evaluated; scales of guidance come with the samplers."""
        if setting == "unconditional":
            return Subject(self.model, self.features, self.reference)
        return Subject(self.model, self.features, self.reference, Conditions(labels=self.labels), judge=self.judge)

    @property
    def rungs(self) -> tuple[Rung, Rung, Rung]:
        """First look, screen and report; the report on other noise."""
        return (
            Rung("look", "moments", max(2, self.screen_images // LOOK), self.seed),
            Rung("screen", "moments", self.screen_images, self.seed),
            Rung("report", "moments", self.report_images, self.seed + REPORT_SEED_OFFSET),
        )

    @property
    def seeds(self) -> dict[str, int]:
        """Seed of each rung by name."""
        return {rung.name: rung.seed for rung in self.rungs}


@dataclass(frozen=True)
class FlowRow:
    """One sampler in one setting. `nfe` is the mean over the images, `guidance` empty without labels."""

    model: str
    setting: str
    method: str
    guidance: float | None
    nfe: float
    metric: str
    value: float
    low: float | None
    high: float | None
    images: int
    denoiser_calls: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    schedule: str


@dataclass(frozen=True)
class Entry:
    """A sampler under the name of its row, and how it is written."""

    method: str
    sampler: Sampler
    text: str

    def at(self, guidance: float | None) -> Entry:
        """The same at another scale of guidance."""
        return Entry(self.method, with_guidance(self.sampler, guidance), self.text)


@dataclass(frozen=True)
class FlowTable:
    """The rows of the screen, and of the report."""

    screened: list[FlowRow]
    reported: list[FlowRow]


def peers(settings: FlowTableSettings, files: ModelFiles) -> dict[tuple[str, int], list[Entry]]:
    """By (euler, heun or preset, NFE) what competes for that row: each solver in every shape that fits the NFE.

    Euler and Heun are torchdiffeq's on equal steps of t, the model's own diffusers scheduler where it is one of them,
    and ours on every grid; a preset is one of the others on every grid. What cannot be (Heun in an even number of calls
    that ends at zero) is left out.
    """
    table: dict[tuple[str, int], list[Entry]] = {}
    for nfe in settings.nfes:
        for method, name in ((EULER, "ddim"), (HEUN, "heun-flow")):
            group = []
            if nfe % FIXED_CALLS[method] == 0:
                group.append(Entry(method, OdeSettings(method, nfe // FIXED_CALLS[method]), f"torchdiffeq {method}"))
            if is_stock_flow(files.scheduler_config, method) and (schedule := _stock(files, nfe)):
                group.append(Entry(method, schedule, str(files.scheduler_config["_class_name"])))
            table[method, nfe] = group + _on_grids(method, name, settings.grids, files, nfe)
        others = [e for name in settings.presets for e in _on_grids(PRESET, name, settings.grids, files, nfe)]
        table[PRESET, nfe] = others
    return {at: entries for at, entries in table.items() if entries}


def _stock(files: ModelFiles, nfe: int) -> SolverSchedule | None:
    try:
        return stock_schedule(files.scheduler_config, nfe)
    except ConfigurationError:
        return None


def _on_grids(method: str, name: str, grids: Sequence[str], files: ModelFiles, nfe: int) -> list[Entry]:
    entries = []
    for where in grids:
        try:
            entries.append(Entry(method, preset_on_grid(f"{name}/{where}", files.noise, nfe), f"{name}/{where}"))
        except ConfigurationError:
            continue
    return entries


def run(
    settings: FlowTableSettings,
    root: Path,
    execution: ExecutionSettings | None,
    on_record: OnRecord | None = None,
    tell: Tell | None = None,
) -> FlowTable:
    """Screen, choose, report, one setting after the other; EvaluationError where dopri5 cannot be evaluated.

    Without `execution` nothing is computed: what is known so far.
    """
    if execution is not None:
        register(settings, settings.model, root, STUDY)
    tables = [_Runner(settings, setting, root, execution, on_record, tell).run() for setting in settings.settings]
    return FlowTable([r for t in tables for r in t.screened], [r for t in tables for r in t.reported])


class _Runner:
    """One setting of the table."""

    def __init__(
        self,
        settings: FlowTableSettings,
        setting: Setting,
        root: Path,
        execution: ExecutionSettings | None,
        on_record: OnRecord | None,
        tell: Tell | None,
    ) -> None:
        self.settings, self.setting, self.root, self.execution = settings, setting, root, execution
        self.on_record, self.tell = on_record, tell
        self.files, self.subject = find_model(settings.model), settings.subject(setting)
        self.look, self.screen, self.report = settings.rungs
        self.screened: list[FlowRow] = []
        self.scales: tuple[float | None, ...] = settings.guidances if setting == "conditional" else (None,)

    def run(self) -> FlowTable:
        guidance = self._choose_guidance()
        chosen = self._choose_peers(guidance)
        exact = OdeSettings(atol=self.settings.tolerance, rtol=self.settings.tolerance)
        entries = [Entry(ADAPTIVE, exact, exact.name).at(guidance), *chosen, *self._found()]
        rows = self._evaluated(entries, self.report)
        if rows[0] is None and self.execution is not None:
            raise EvaluationError(f"{ADAPTIVE} could not be evaluated ({self.setting}): see the table of evaluations")
        return FlowTable(self.screened, [row for row in rows if row is not None])

    def _choose_guidance(self) -> float | None:
        """The scale at which dopri5 does best on the search's noise."""
        if len(self.scales) == 1:
            return self.scales[0]
        loose = OdeSettings(atol=SCREEN_TOLERANCE, rtol=SCREEN_TOLERANCE)
        rows = self._evaluated([Entry(ADAPTIVE, loose, loose.name).at(g) for g in self.scales], self.screen)
        having = [row for row in rows if row is not None]
        if not having:
            return self.scales[0]
        best = min(having, key=lambda row: row.value)
        if self.tell:
            self.tell(f"{ADAPTIVE} is best at guidance {best.guidance:g} of {', '.join(f'{g:g}' for g in self.scales)}")
        return best.guidance

    def _choose_peers(self, guidance: float | None) -> list[Entry]:
        """For each row of a peer its best entry at dopri5's scale, then at whichever scale is best for that one."""
        table = {at: [e.at(guidance) for e in group] for at, group in peers(self.settings, self.files).items()}
        leading = self._ranked(self._ranked(table, self.look, KEPT), self.screen, 1)
        if self.settings.peer_guidance and len(self.scales) > 1:
            scaled = {at: [group[0].at(g) for g in self.scales] for at, group in leading.items()}
            leading = self._ranked(scaled, self.screen, 1)
        return [entry for group in leading.values() for entry in group]

    def _ranked(
        self, table: dict[tuple[str, int], list[Entry]], rung: Rung, keep: int
    ) -> dict[tuple[str, int], list[Entry]]:
        """The best `keep` entries of each row at a rung, the best one first; what has no value drops out."""
        entries = [entry for group in table.values() for entry in group]
        rows = self._evaluated(entries, rung)
        values = {e.sampler.hash: row.value for e, row in zip(entries, rows, strict=True) if row is not None}
        ranked = {}
        for at, group in table.items():
            # Presets that coincide at few calls are one entry, under the name that comes first.
            having = {e.sampler.hash: e for e in reversed(group) if e.sampler.hash in values}
            if having:
                ranked[at] = sorted(having.values(), key=lambda entry: values[entry.sampler.hash])[:keep]
        return ranked

    def _found(self) -> list[Entry]:
        s = self.settings
        texts = s.found if self.setting == "unconditional" else s.found_conditional
        schedules = [SolverSchedule.from_json(text) for text in texts]
        return [Entry(FOUND, x, x.name or x.hash) for x in sorted(schedules, key=lambda x: x.nfe) if x.nfe in s.nfes]

    def _evaluated(self, entries: Sequence[Entry], rung: Rung) -> list[FlowRow | None]:
        records: Sequence[EvaluationRecord | None]
        if self.execution is None:
            records = evaluated_already(self.subject, [e.sampler for e in entries], rung, self.root, STUDY)
        else:
            work = [(e.sampler, f"{e.method}:{e.text}") for e in entries]
            records = evaluate_missing(self.subject, work, rung, self.root, self.execution, STUDY, self.on_record)
        pairs = zip(records, entries, strict=True)
        rows = [self._row(r, e) if r is not None and r.value is not None else None for r, e in pairs]
        if rung is not self.report:
            self.screened += [row for row in rows if row is not None and row not in self.screened]
        return rows

    def _row(self, record: EvaluationRecord, entry: Entry) -> FlowRow:
        assert record.value is not None
        method = entry.text.partition("/")[0] if entry.method == PRESET else entry.method
        nfe = record.metrics.get("nfe", float(record.nfe))
        guidance = None if self.setting == "unconditional" else entry.sampler.guidance
        if guidance is None and self.setting == "conditional":
            guidance = self.subject.conditions.guidance
        return FlowRow(
            model=record.model,
            setting=self.setting,
            method=method,
            guidance=guidance,
            nfe=nfe,
            metric=record.features,
            value=record.value,
            low=record.low,
            high=record.high,
            images=record.images,
            denoiser_calls=round(nfe * record.images),
            accuracy=record.metrics.get("accuracy"),
            accuracy_low=record.metrics.get("accuracy_low"),
            accuracy_high=record.metrics.get("accuracy_high"),
            schedule=entry.text,
        )


def plain_rows(rows: Sequence[FlowRow], setting: str) -> list[Row]:
    """The rows of one setting at whole NFEs, as other tables have them; presets under one name."""
    shown = {EULER, HEUN, FOUND}
    return [
        Row(r.model, r.method if r.method in shown else "best preset", round(r.nfe), r.metric, r.value, r.low, r.high,
            r.images, r.schedule)
        for r in rows
        if r.setting == setting and r.method != ADAPTIVE
    ]  # fmt: skip
