"""Other ways to few steps on one model, each through the same evaluation: screened on search seeds, then reported.

`presets`: stock solvers on every grid, without and with an analytic first call. `gits`: times by dynamic programming,
under every stock solver, with an analytic first call from several starts too. `ld3`: times and told times by gradient,
from noises that may move a little. `s4s`: coefficients of a window of outputs besides (what S4S alternates is tuned at
once). `filters`: those, and kernels on the outputs. `gas`: corrections of all coefficients, from DPM-Solver++ 3M. The
learned ones start from the best stock schedule at that number of calls and share one teacher, one distance and one plan
with our own refinement, so that only what is tuned differs. `tuned` is the control of a search: the best stock
schedule, tuned to moments by as many calls as a search has. `random`, `tpe`, `nsgaii`, `cmaes` and `evolution` (the
published search's operators) are searches by the engine of `fewstep search`, with `budget` calls at each NFE, whose
screens and finals are the default ones; `fewstep` is such a search with all defaults. No guard is on. `found` are
schedules from elsewhere, `refined` what their refinement gives. `judges` are metrics that choose nothing and measure
the report's images too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.tables.engine import (
    GRIDS,
    GRIDS_TO_ZERO,
    GROUP,
    Conditions,
    Engine,
    EvaluationRecord,
    Found,
    Grids,
    Picture,
    Presets,
    Row,
    Rung,
    Searched,
    Sheet,
    Subject,
    Table,
    known_names,
    measured,
    on_grids,
)
from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.refine_plan import refine_plan
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS, preset
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.gits import Trajectories
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.refinement.parameters import USUAL
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import parse_schedule

# What each tunes of the plan that all share. LD3's ball, which S4S has too.
BALL = 0.001
LEARNED: dict[str, dict[str, object]] = {
    "ld3": {"parts": ("times", "shifts"), "soft_target": BALL},
    "s4s": {"parts": ("times", "shifts", "outputs"), "window": 3, "soft_target": BALL},
    "filters": {"parts": ("times", "shifts", "outputs", "filters"), "window": 3, "soft_target": BALL},
    "gas": {"parts": ("times", "shifts", "points", "outputs")},
}
SEARCHED = ("random", "tpe", "nsgaii", "cmaes", "evolution")
# One search for each number of calls, as the other samplers make, and one of all of them, which tell each other.
OURS, TOGETHER = "fewstep", "fewstep-front"
METHODS = ("presets", "gits", *LEARNED, "tuned", *SEARCHED, OURS, TOGETHER)
GAS_START = "dpmpp-3m/"
# What searches start from, and the solvers that GITS and DEIS were published with.
SOLVERS = (*SEARCH_PRESETS, "deis-3", "ipndm-v-3")
# Where many compete, so many of them see the images of the screen; the others were looked at, paired, on few.
KEPT, FEW, CONTROL = 6, 64, "analytic:unipc-2-bh2/uniform-lambda"
# Noise over signal at which GITS' times begin, where the first call is the noise itself.
STARTS = (80.0, 40.0, 24.0, 12.0, 6.0)


def _methods(names: tuple[str, ...]) -> tuple[str, ...]:
    # The best stock schedule is where the learned ones start.
    return tuple(dict.fromkeys(("presets", *known_names(names, "method", METHODS))))


class Peers(Table):
    """`found` is a schedule file or the folder of a search; `report_best`: how many peers see all images, 0: all.

    `starts`: noise over signal at which GITS' times begin after an analytic first call.
    """

    study: ClassVar[str] = "peers"

    model: str
    labels: str = "none"
    methods: Annotated[tuple[str, ...], AfterValidator(_methods)] = ("presets", "gits", *LEARNED)
    judges: tuple[str, ...] = ()
    nfes: tuple[int, ...] = (3, 4, 5)
    grids: Grids = GRIDS_TO_ZERO
    presets: Presets = SOLVERS
    starts: tuple[PositiveFloat, ...] = STARTS
    screen_images: PositiveInt = 2000
    report_images: PositiveInt = 10_000
    report_best: NonNegativeInt = 0
    teacher: str = "unipc-2-bh2/karras-zero@64"
    plan: RefinePlan = RefinePlan()
    budget: PositiveInt = 100_000
    found: str = ""
    refine_found: bool = True

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """All methods at every NFE. `calls` are those that finding a schedule took, `searched` what chose it."""
        rows = list[Row]()
        seeds = {"search": self.seed, "refinement": self.plan.noise_seed, "report": self.reported_on(1).seed}
        notes = {"calls": "denoiser calls that finding the schedule took, a backward one as two"}
        contest = Contest(self, engine)
        for nfe in self.nfes:
            rows += contest.rows(nfe)
            yield Sheet(engine.name, rows, seeds, notes)


@dataclass(frozen=True)
class Choice:
    """What one method chose at one NFE, by which value, at which cost."""

    method: str
    schedule: SolverSchedule
    value: float
    calls: int


class Contest:
    """One table in the making."""

    def __init__(self, asked: Peers, engine: Engine) -> None:
        self.asked, self.engine = asked, engine
        self.files, self.conditions = find_model(asked.model), Conditions(labels=asked.labels)
        self.subject = Subject(asked.model, conditions=self.conditions)
        self.teacher = parse_schedule(asked.teacher, self.files.noise)
        self.search = Searched.load(asked.found) if asked.found and Path(asked.found).is_dir() else None
        self.found = self.search.found if self.search else [load_schedule(asked.found)] if asked.found else []
        # By method and NFE: how many proposals of its own a search looked at.
        self.own: dict[tuple[str, int], int] = {}
        # By NFE: the best stock schedule, and what was seen of all of them.
        self._stock: dict[int, tuple[Choice, list[tuple[float, SolverSchedule]]]] = {}

    def rows(self, nfe: int) -> list[Row]:
        """The lines of one NFE: peers that are far behind on a part of the report's images stop there."""
        s = self.asked
        choices = [self.choice(method, nfe) for method in s.methods]
        choices += [c for schedule in self.found if schedule.nfe == nfe for c in self.given(schedule)]
        for choice in choices:
            self.engine.tell(f"{choice.method:10} NFE {nfe:<3} {choice.value:.3f} for {choice.calls:,} calls")
        report, records, best = s.reported_on(s.report_images), dict[str, EvaluationRecord](), choices
        report = replace(report, also=s.judges)
        if s.report_best:
            part = replace(report, name="first report", images=max(2, report.images // 4))
            records = self.evaluated(choices, part)
            best = _leaders(choices, records, s.report_best)
        records |= self.evaluated(best, report)
        return [row_of(choice, records[choice.schedule.hash], s.judges) for choice in choices]

    def choice(self, method: str, nfe: int) -> Choice:
        """What a method chooses at one NFE."""
        if method == "presets":
            return self.stock(nfe)[0]
        if method == "gits":
            return self.gits(nfe)
        if method == "tuned":
            return self.tuned(nfe)
        return self.learned(method, nfe) if method in LEARNED else self.by_search(method, nfe)

    def stock(self, nfe: int) -> tuple[Choice, list[tuple[float, SolverSchedule]]]:
        """The best of all presets on all grids, chosen by the search seeds, and what was seen of all of them."""
        if nfe not in self._stock:
            presets = on_grids(self.files, self.asked.presets, self.asked.grids, nfe)
            longer = on_grids(self.files, self.asked.presets, self.asked.grids, nfe + 1)
            freed = [analytic(x) for x in longer.values() if x.first_call == "model"]
            every = [*presets.values(), *(x for x in freed if x.nfe == nfe)]
            self._stock[nfe] = self.best("presets", every, 0)
        return self._stock[nfe]

    def tuned(self, nfe: int) -> Choice:
        """What tuning makes of the best stock schedule with what a search may spend: a search that only tunes."""
        s, (stock, _) = self.asked, self.stock(nfe)
        most = s.budget - stock.calls - nfe * s.screen_images
        plan = refine_plan(SearchSettings.build(model=s.model, nfes=(nfe,), seed=s.seed), nfe, self.teacher.nfe, most)
        return self.planned("tuned", stock.schedule, plan, stock.calls)

    @cached_property
    def trajectories(self) -> Trajectories:
        """What GITS plans its times by."""
        denoiser = Denoiser(self.files, self.engine.execution.device, self.conditions)
        seed = self.asked.plan.noise_seed
        path = self.engine.kept("gits", model=self.files.hash, conditions=self.conditions.hash, seed=seed)
        return Trajectories(denoiser, seed, path=path.with_suffix(".safetensors"))

    def gits(self, nfe: int) -> Choice:
        """Dynamic programming's times under every stock solver, with and without a last jump to sigma = 0.

        With an analytic first call besides, after which the times begin at one of the starts.
        """
        schedules = [
            preset(solver, times).model_copy(update={"name": f"{solver}/{name}"})
            for name, times in self.trajectories.grids(nfe).items()
            for solver in self.asked.presets
        ]
        schedules += [
            analytic(preset(solver, times).model_copy(update={"name": f"{solver}/{name}"}))
            for ratio in self.asked.starts
            for name, times in self.trajectories.grids(nfe, -math.log(ratio)).items()
            for solver in self.asked.presets
        ]
        # Of those that coincide the first one gives the name.
        return self.best("gits", schedules[::-1], self.trajectories.calls)[0]

    def learned(self, method: str, nfe: int) -> Choice:
        """What gradients make of the best stock schedule, tuning what the method tunes."""
        stock, seen = self.stock(nfe)
        start = stock.schedule
        if method == "gas":
            # Where presets coincide only the first of them is there.
            start = next((s for _, s in seen if s.name.startswith(GAS_START)), start)
        return self.planned(method, start, self.asked.plan.model_copy(update=LEARNED[method]), stock.calls)

    def by_search(self, sampler: str, nfe: int) -> Choice:
        """The best of a search by `fewstep search`'s engine with that sampler; the budget is that of one NFE."""
        s = self.asked
        proposes = {} if sampler in (OURS, TOGETHER) else {"sampler": sampler, "refine": 0.0}
        nfes = s.nfes if sampler == TOGETHER else (nfe,)
        found = self.searched(sampler, nfe, nfes, teacher=s.teacher, budget=s.budget * len(nfes), **proposes)
        self.own[sampler, nfe] = found.own
        return self.best(sampler, [found.schedule], found.calls)[0]

    def searched(self, name: str, nfe: int, nfes: Sequence[int], **settings: Any) -> Found:
        """What a search of the contest's model, on its seed and without a guard, finds at one NFE."""
        s = self.asked
        return self.engine.searched(
            name, nfe, nfes, model=s.model, conditions=self.conditions, seed=s.seed, guard="none", **settings
        )

    def given(self, schedule: SolverSchedule) -> list[Choice]:
        """A schedule from elsewhere, and what refining all of it gives."""
        found = self.best("found", [schedule], 0)[0]
        if self.search is not None:
            # Its search has judged it already.
            found = replace(found, calls=self.search.calls(schedule.nfe))
        plan = self.asked.plan.model_copy(update={"parts": USUAL, "window": 0})
        again = [self.planned("refined", schedule, plan, found.calls)] if self.asked.refine_found else []
        return [found, *again]

    def planned(self, method: str, start: SolverSchedule, plan: RefinePlan | MomentPlan, calls: int) -> Choice:
        """What a plan of tuning gives."""
        s = self.asked
        found, value, more = self.engine.refined(self.subject, start, self.teacher, plan, s.screen_images, s.seed)
        name = start.name if found.hash == start.hash else f"{method} from {start.name or start.hash}"
        return Choice(method, found.model_copy(update={"name": name}), value, calls + more)

    def best(
        self, method: str, schedules: Iterable[SolverSchedule], calls: int
    ) -> tuple[Choice, list[tuple[float, SolverSchedule]]]:
        """The best by the screen, and what the first look said of all, the best first; calls add to the cost."""
        screen = self.asked.chosen_on("search", self.asked.screen_images)
        left = list({x.hash: x for x in schedules}.values())
        looked: list[tuple[float, SolverSchedule]] = []
        if len(left) > KEPT and FEW < GROUP <= screen.images:
            # One is judged, and what the others change on few of its images orders them.
            control = min(left, key=lambda x: x.name != CONTROL)
            look = replace(screen, name="look", metric="paired", images=FEW).controlled_by(as_point(control), screen)
            self.ranked(method, [control], screen)
            looked = self.ranked(method, [control], look)
            looked += self.ranked(method, [x for x in left if x is not control], look)
            looked.sort(key=lambda pair: pair[0])
            calls += sum(x.nfe for x in left) * look.images
            left = list({x.hash: x for x in (control, *(x for _, x in looked[:KEPT]))}.values())
        seen = self.ranked(method, left, screen)
        value, best = seen[0]
        calls += sum(x.nfe for x in left) * screen.images
        return Choice(method, best, value, calls), looked or seen

    def ranked(
        self, method: str, schedules: Sequence[SolverSchedule], rung: Rung
    ) -> list[tuple[float, SolverSchedule]]:
        """Values and schedules, the best first, without those that failed."""
        records = self.engine.records(self.subject, [(x, f"peer:{method}") for x in schedules], rung)
        pairs = [(r.value, x) for r, x in zip(records, schedules, strict=True) if r.value is not None]
        if not pairs:
            raise ConfigurationError(f"no schedule of {method} could be evaluated: {records[0].error}")
        return sorted(pairs, key=lambda pair: pair[0])

    def evaluated(self, choices: Sequence[Choice], rung: Rung) -> dict[str, EvaluationRecord]:
        """Records by schedule."""
        records = self.engine.records(self.subject, [(c.schedule, f"peer:{c.method}") for c in choices], rung)
        return {r.candidate: r for r in records}


def _leaders(choices: Sequence[Choice], records: dict[str, EvaluationRecord], count: int) -> list[Choice]:
    """The best of the peers on a part of the images, and all that are no peers."""

    def value(choice: Choice) -> float:
        known = records[choice.schedule.hash].value
        return float("inf") if known is None else known

    peers = sorted((c for c in choices if c.method in METHODS), key=value)
    # Methods may choose the same schedule, which counts once.
    leading = list(dict.fromkeys(c.schedule.hash for c in peers))[:count]
    return [c for c in choices if c.method not in METHODS or c.schedule.hash in leading]


def analytic(schedule: SolverSchedule) -> SolverSchedule:
    """The same, whose first call is replaced by the noise itself."""
    return schedule.model_copy(update={"first_call": "zero_x0", "name": f"analytic:{schedule.name}"})


def row_of(choice: Choice, record: EvaluationRecord, judges: Sequence[str]) -> Row:
    """A line of a table: what was chosen, and what its report says."""
    schedule = choice.schedule.name or choice.schedule.hash
    head = {"model": record.model, "method": choice.method, "nfe": record.nfe}
    tail = {"images": record.images, "schedule": schedule, "searched": choice.value, "calls": choice.calls}
    return head | measured(record, schedule, judges) | tail


DIGITS = Peers(model="digits-ddpm", report_images=2000, found="runs/digits-search")
# Schedules of one training run on another one, and a search anew there.
TRANSFER = Peers(
    model="runs/digits-ddpm-seed1", methods=("presets",), screen_images=1000, found="runs/demo", refine_found=False
)
ANEW = TRANSFER.model_copy(update={"found": "runs/digits-seed1"})
FASHION = Peers(
    model="fashion-ddpm",
    labels="balanced",
    methods=("presets", "gits", *LEARNED, "tuned", "random", "tpe", "nsgaii", "evolution"),
    judges=("frechet:judge", "kid:judge"),
    nfes=(3, 4, 5, 6, 8, 10),
    screen_images=1000,
    teacher="dpmpp-2m/uniform-t-zero@20",
    plan=RefinePlan(distance="features", iterations=150),
    budget=150_000,
    grids=GRIDS,
    found="runs/fashion-front-moments",
    refine_found=False,
)
