"""Samplers of a flow side by side: dopri5, fixed-step solvers, the best preset and found schedules, at each NFE.

Without labels and with labels and guidance. Whatever is chosen (grids, presets, scales of guidance) is chosen on search
seeds with `screen_images`; what is shown is computed on report seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from benchmarks.tables.engine import (
    GRIDS_TO_ZERO,
    Conditions,
    Engine,
    EvaluationRecord,
    Grids,
    Picture,
    Presets,
    Row,
    Rung,
    Sheet,
    Subject,
    Table,
    draw_front,
    measured,
    on_grids,
)
from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.ode import ADAPTIVE, FIXED_CALLS, OdeSettings, Sampler, with_guidance
from fewstep.search_spaces.schedule import load_schedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.tasks.models.conditions import NO_LABEL
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.sampling.stock import is_stock_flow, stock_schedule

Setting = Literal["unconditional", "conditional"]
EULER, HEUN, PRESET, FOUND = "euler", "heun", "preset", "fewstep"
# Scales of guidance are screened with dopri5 at this tolerance: to the Frechet distance it is the same sampler.
SCREEN_TOLERANCE = 1e-3
# All entries of a row are looked at on this part of the screen's images; so many go on to the whole screen.
LOOK, KEPT = 4, 3
ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
SCHEDULES = "docs/results/schedules/fashion_flow"


class Flow(Table):
    """`found` and `found_conditional` are schedule files, one an NFE, for the two settings.

    Every peer gets the scale of guidance that is best for it; found schedules carry their own.
    """

    study: ClassVar[str] = "flow-table"

    model: str = "fashion-lfm"
    settings: tuple[Setting, ...] = Field(("unconditional", "conditional"), min_length=1)
    labels: str = "balanced"
    judge: str = "fashion"
    nfes: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    presets: Presets = (*SEARCH_PRESETS[1:], "deis-3")
    grids: Grids = GRIDS_TO_ZERO
    guidances: tuple[float, ...] = Field((0.9, 1.0, 1.1, 1.25), min_length=1)
    found: tuple[str, ...] = tuple(f"{SCHEDULES}_nfe{n}.json" for n in (3, 4, 5, 6, 8, 10))
    found_conditional: tuple[str, ...] = tuple(f"{SCHEDULES}_guided_nfe{n}.json" for n in (3, 4, 5, 6, 8, 10))
    screen_images: PositiveInt = 1000
    report_images: PositiveInt = 10_000
    tolerance: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _asks_for_labels(self) -> Self:
        if "conditional" in self.settings and self.labels == NO_LABEL:
            raise ValueError("the conditional setting needs labels, as balanced")
        return self

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """The report's rows, and the screen's, one setting after the other."""
        screened, reported = list[Row](), list[Row]()
        seeds = {"look": self.seed, "screen": self.seed, "report": self.reported_on(1).seed}
        notes = {
            "nfe": "mean denoiser calls an image; a guided call counts as one",
            "chosen": f"guidance, grids and presets on {self.screen_images} images of the screen's seed",
            **({"accuracy": f"of judge {self.judge}, Wilson interval"} if self.judge else {}),
        }
        for setting in self.settings:
            competition = Competition(self, setting, engine)
            rows = competition.run()
            screened, reported = screened + competition.screened, reported + rows
            yield Sheet(f"{engine.name}_screen", screened, seeds, notes)
            yield Sheet(engine.name, reported, seeds, notes)
            yield Picture(f"{engine.name}_{setting}", lambda path, rows=rows: _draw(rows, path))  # type: ignore[misc]


@dataclass(frozen=True)
class Entry:
    """A sampler under the name of its row, and how it is written."""

    method: str
    sampler: Sampler
    text: str

    def at(self, guidance: float | None) -> Entry:
        """The same at another scale of guidance."""
        return Entry(self.method, with_guidance(self.sampler, guidance), self.text)


Groups = dict[tuple[str, int], list[Entry]]


def peers(asked: Flow, files: ModelFiles) -> Groups:
    """By (euler, heun or preset, NFE) what competes for that row: each solver in every shape that fits the NFE.

    Euler and Heun are torchdiffeq's on equal steps of t, the model's own diffusers scheduler where it is one of them,
    and ours on every grid; a preset is one of the others on every grid. What cannot be (Heun in an even number of calls
    that ends at zero) is left out.
    """
    table: Groups = {}
    for nfe in asked.nfes:
        for method, name in ((EULER, "ddim"), (HEUN, "heun-flow")):
            group: list[tuple[str, Sampler]] = []
            if nfe % FIXED_CALLS[method] == 0:
                group.append((f"torchdiffeq {method}", OdeSettings(method, nfe // FIXED_CALLS[method])))
            if is_stock_flow(files.scheduler_config, method):
                with suppress(ConfigurationError):
                    stock = stock_schedule(files.scheduler_config, nfe, files.noise)
                    group.append((str(files.scheduler_config["_class_name"]), stock))
            group += on_grids(files, (name,), asked.grids, nfe).items()
            table[method, nfe] = [Entry(method, sampler, text) for text, sampler in group]
        others = on_grids(files, asked.presets, asked.grids, nfe)
        table[PRESET, nfe] = [Entry(PRESET, sampler, text) for text, sampler in others.items()]
    return {at: entries for at, entries in table.items() if entries}


@dataclass
class Competition:
    """One setting of the table in the making; `screened` are the rows that chose."""

    asked: Flow
    setting: Setting
    engine: Engine
    screened: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, plain = self.asked, self.setting == "unconditional"
        self.scales: tuple[float | None, ...] = (None,) if plain else s.guidances
        labelled = Subject(s.model, conditions=Conditions(labels=s.labels), judge=s.judge)
        self.subject = Subject(s.model) if plain else labelled
        self.look = s.chosen_on("look", max(2, s.screen_images // LOOK))
        self.screen, self.report = s.chosen_on("screen", s.screen_images), s.reported_on(s.report_images)

    def run(self) -> list[Row]:
        """Screen, choose, report."""
        s = self.asked
        loose = OdeSettings(atol=SCREEN_TOLERANCE, rtol=SCREEN_TOLERANCE)
        exact = OdeSettings(atol=s.tolerance, rtol=s.tolerance)
        common = self.scales[0]
        if len(self.scales) > 1:
            scaled = {(ADAPTIVE, 0): [Entry(ADAPTIVE, loose, loose.name).at(g) for g in self.scales]}
            common = self.best(scaled, self.screen)[ADAPTIVE, 0][0].sampler.guidance
            self.engine.tell(f"{ADAPTIVE} is best at guidance {common} of {self.scales}")
        # The best entry of each row at dopri5's scale, then at whichever scale is best for that one.
        table = {at: [e.at(common) for e in group] for at, group in peers(s, find_model(s.model)).items()}
        leading = self.best(self.best(table, self.look, KEPT), self.screen)
        if len(self.scales) > 1:
            leading = self.best({at: [g[0].at(x) for x in self.scales] for at, g in leading.items()}, self.screen)
        files = s.found if self.setting == "unconditional" else s.found_conditional
        found = sorted((load_schedule(path) for path in files), key=lambda schedule: schedule.nfe)
        entries = [Entry(ADAPTIVE, exact, exact.name).at(common), *(e for group in leading.values() for e in group)]
        entries += [Entry(FOUND, x, x.name or x.hash) for x in found if x.nfe in s.nfes]
        rows = self.rows(entries, self.report)
        if rows[0] is None:
            raise EvaluationError(f"{ADAPTIVE} could not be evaluated ({self.setting}): see the table of evaluations")
        return [row for row in rows if row is not None]

    def best(self, table: Groups, rung: Rung, keep: int = 1) -> Groups:
        """The best `keep` entries of each row at a rung, the best one first; what has no value drops out."""
        entries = [entry for group in table.values() for entry in group]
        rows = self.rows(entries, rung)
        values = {e.sampler.hash: row["value"] for e, row in zip(entries, rows, strict=True) if row is not None}
        ranked = {}
        for at, group in table.items():
            # Presets that coincide at few calls are one entry, under the name that comes first.
            having = {e.sampler.hash: e for e in reversed(group) if e.sampler.hash in values}
            if having:
                ranked[at] = sorted(having.values(), key=lambda entry: values[entry.sampler.hash])[:keep]
        return ranked

    def rows(self, entries: Sequence[Entry], rung: Rung) -> list[Row | None]:
        """A row an entry, None of what failed."""
        records = self.engine.records(self.subject, [(e.sampler, f"{e.method}:{e.text}") for e in entries], rung)
        rows = [None if r.value is None else self.row(r, e) for r, e in zip(records, entries, strict=True)]
        if rung is not self.report:
            self.screened += [row for row in rows if row is not None and row not in self.screened]
        return rows

    def row(self, record: EvaluationRecord, entry: Entry) -> Row:
        """What is told of one sampler; `nfe` is the mean over the images, `guidance` empty without labels."""
        nfe, scale = record.metrics.get("nfe", float(record.nfe)), entry.sampler.guidance
        head = {
            "model": record.model,
            "setting": self.setting,
            "method": entry.text.partition("/")[0] if entry.method == PRESET else entry.method,
            "guidance": None if self.setting == "unconditional" else 1.0 if scale is None else scale,
            "nfe": nfe,
        }
        counts = {"images": record.images, "denoiser_calls": round(nfe * record.images)}
        accuracy = {name: record.metrics.get(name) for name in ACCURACY}
        return head | measured(record, entry.text) | counts | accuracy | {"schedule": entry.text}


def _draw(rows: list[Row], path: Path) -> None:
    """Distance against NFE, all presets as one line, dopri5 as a level across."""
    names = {EULER, HEUN, FOUND}
    shown = [r | {"method": r["method"] if r["method"] in names else "best preset"} for r in rows[1:]]
    draw_front(shown, rows[0], path)


FASHION = Flow()
