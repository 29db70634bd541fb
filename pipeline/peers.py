"""Other ways to few steps on one model, each through the same evaluation: screened on search seeds, then reported.

`presets`: stock solvers on every grid. `gits`: times by dynamic programming, under every stock solver. `ld3`: times
and told times by gradient. `s4s`: coefficients of a window of outputs besides (what S4S alternates is tuned at once).
`gas`: corrections of all coefficients, from DPM-Solver++ 3M. The learned ones start from the best stock schedule at
that number of calls and share one teacher, one distance and one plan with our own refinement, so that only what is
tuned differs. `random`, `tpe`, `nsgaii`, `cmaes` and `evolution` (the published search's operators) are searches by
the engine of `fewstep search`, with `budget` calls at each NFE, screened as ours are. `found` are schedules from
elsewhere, `refined` what their refinement gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.pipeline.baseline import BaselineSettings, entries
from fewstep.pipeline.campaign import evaluate_missing
from fewstep.pipeline.evaluator import content_key
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.final import winner
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.peers_settings import LEARNED, METHODS, SOLVERS, PeersSettings
from fewstep.pipeline.refinement import judge, refine
from fewstep.pipeline.reports.rows import Row, row_of
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.search_spaces.presets import preset
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.refinement.gits import Trajectories
from fewstep.tasks.refinement.parameters import PARTS
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.worker import GROUP

STUDY = "peers"
GAS_START = "dpmpp-3m"
# How many of those that were looked at on a part of the screen's images see the rest of them.
KEPT = 4
Tell = Callable[[str], None]


@dataclass(frozen=True)
class PeerRow(Row):
    """A line of the table: the report's value with its 95% interval, and the value that the choice was made by.

    `calls` are the denoiser calls that finding the schedule took, a backward one as two, the report's not among them.
    """

    searched: float
    calls: int


@dataclass(frozen=True)
class Choice:
    """What one method chose at one NFE, by which value, at which cost."""

    method: str
    schedule: SolverSchedule
    value: float
    calls: int


class Peers:
    """One table in the making. Everything it computes is kept under `root` and computed once."""

    def __init__(
        self,
        settings: PeersSettings,
        root: Path,
        execution: ExecutionSettings,
        on_record: OnRecord | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.settings, self.root, self.execution = settings, root, execution
        self._on_record, self._tell = on_record, tell or (lambda text: None)
        self.files = find_model(settings.model)
        self.teacher = parse_schedule(settings.teacher, self.files.noise)
        self._trajectories: Trajectories | None = None
        self._stock: dict[int, tuple[Choice, dict[str, float], dict[str, SolverSchedule]]] = {}

    def run(self) -> list[PeerRow]:
        """All methods at every NFE, then the report."""
        return [row for nfe in self.settings.nfes for row in self._reported(self.at(nfe))]

    def _reported(self, choices: Sequence[Choice]) -> list[PeerRow]:
        """The lines of one NFE: schedules that are far behind on a part of the images stop there."""
        s = self.settings
        records: dict[str, EvaluationRecord] = {}
        best = list(choices)
        if s.report_best:
            records = self._evaluated([(c.schedule, f"peer:{c.method}") for c in choices], s.first_report)
            best = _leaders(choices, records, s.report_best)
        records |= self._evaluated([(c.schedule, f"peer:{c.method}") for c in best], s.report)
        return [_row(choice, records[choice.schedule.hash]) for choice in choices]

    def at(self, nfe: int) -> list[Choice]:
        """What every method chooses at one NFE, none of it reported yet."""
        s, found = self.settings, []
        for method in s.methods:
            if method == "presets":
                found.append(self.stock(nfe))
            elif method == "gits":
                found.append(self.gits(nfe))
            elif method in LEARNED:
                found.append(self.learned(method, nfe))
            else:
                found.append(self.searched(method, nfe))
            self._tell(f"{method:10} NFE {nfe:<3} {found[-1].value:.3f} for {found[-1].calls:,} calls")
        for schedule in (SolverSchedule.from_json(text) for text in s.found):
            if schedule.nfe == nfe:
                found += self.given(schedule)
        return found

    # -- each method ----------------------------------------------------------------------------------

    def stock(self, nfe: int) -> Choice:
        """The best of all presets on all grids, chosen by the search seeds."""
        if nfe not in self._stock:
            s = self.settings
            wanted = BaselineSettings(model=s.model, presets=SOLVERS, grids=s.grids, nfes=(nfe,))
            schedules = {x.hash: x for group in entries(wanted).values() for x in group}
            choice, values = self._best("presets", list(schedules.values()), 0)
            self._stock[nfe] = choice, values, schedules
        return self._stock[nfe][0]

    def gits(self, nfe: int) -> Choice:
        """Dynamic programming's times under every stock solver, with and without a last jump to sigma = 0."""
        if self._trajectories is None:
            denoiser = Denoiser(self.files, self.execution.device, self.settings.conditions)
            seed = self.settings.plan.noise_seed
            key = content_key(model=self.files.hash, conditions=self.settings.conditions.hash, seed=seed)
            path = self.root / "gits" / f"{key}.safetensors"
            self._trajectories = Trajectories(denoiser, seed, path=path)
        schedules = [
            preset(solver, times).model_copy(update={"name": f"{solver}/{name}"})
            for name, times in self._trajectories.grids(nfe).items()
            for solver in SOLVERS
        ]
        unique = {s.hash: s for s in reversed(schedules)}
        return self._best("gits", list(unique.values()), self._trajectories.calls)[0]

    def learned(self, method: str, nfe: int) -> Choice:
        """What gradients make of the best stock schedule, tuning what the method tunes."""
        stock = self.stock(nfe)
        parts, window = LEARNED[method]
        start = stock.schedule
        if method == "gas":
            _, values, schedules = self._stock[nfe]
            ours = {h: v for h, v in values.items() if schedules[h].name.startswith(f"{GAS_START}/")}
            # Where presets coincide only the first of them is there.
            start = schedules[min(ours, key=lambda h: ours[h])] if ours else start
        return self._refined(
            method, start, self.settings.plan.model_copy(update={"parts": parts, "window": window}), stock.calls
        )

    def given(self, schedule: SolverSchedule) -> list[Choice]:
        """A schedule from elsewhere, and what refining all of it gives."""
        found = self._best("found", [schedule], 0)[0]
        if schedule.nfe in self.settings.found_calls:
            # Its search has judged it already.
            found = replace(found, calls=self.settings.found_calls[schedule.nfe])
        both = [found]
        if self.settings.refine_found:
            plan = self.settings.plan.model_copy(update={"parts": PARTS, "window": 0})
            both.append(self._refined("refined", schedule, plan, found.calls))
        for choice in both:
            self._tell(f"{choice.method:10} NFE {schedule.nfe:<3} {choice.value:.3f} for {choice.calls:,} calls")
        return both

    def searched(self, sampler: str, nfe: int) -> Choice:
        """The best of a search by `fewstep search`'s engine with that sampler, at this NFE alone."""
        from fewstep.pipeline.state import SearchState

        s = self.settings
        settings = SearchSettings.build(
            study=f"{STUDY}-{sampler}-{nfe}",
            model=s.model,
            features=s.features,
            reference=s.reference,
            conditions=s.conditions,
            nfes=(nfe,),
            sampler=sampler,
            seed=s.seed,
            budget=s.budget,
            teacher=s.teacher,
            finalist_images=max(s.screen_images, 1001),
            screen="frechet",
            keep=0.2,
            preset_grids=1,
        )
        study = Study(self.root / "searches" / f"{sampler}-{nfe}", settings)
        if study.exists and Study.load(study.root).settings != settings:
            raise ConfigurationError(f"{study.root} holds a search with other settings: choose another --out")
        state = study.find(self.execution, self._on_record)
        assert isinstance(state, SearchState)
        best = winner(state, nfe)
        if best is None:
            raise ConfigurationError(f"the search by {sampler} found nothing at NFE {nfe}: give a larger --budget")
        calls = sum(r.denoiser_calls for r in study.store.evaluations.records({"study": settings.study}))
        return self._best(sampler, [best.candidate.schedule], calls)[0]

    # -- evaluations ----------------------------------------------------------------------------------

    def _refined(self, method: str, start: SolverSchedule, plan: RefinePlan, calls: int) -> Choice:
        s = self.settings
        refined = refine(s.subject, start, self.teacher, plan, self.root, self.execution.device)
        judged = judge(s.subject, refined, s.screen_images, s.seed, self.root, self.execution, STUDY, self._on_record)
        values = [r.value for r in judged.records if r.value is not None]
        name = f"{method} from {start.name or start.hash}" if judged.kind != "start" else start.name
        chosen = judged.chosen.model_copy(update={"name": name})
        return Choice(method, chosen, min(values), calls + refined.cost.calls + judged.judging_calls)

    def _best(self, method: str, schedules: Sequence[SolverSchedule], calls: int) -> tuple[Choice, dict[str, float]]:
        """The best by the screen, and all values by hash, of few images where there are many; calls add to the cost."""
        screen, look = self.settings.screen, self.settings.look
        looked: dict[str, float] = {}
        left = list(schedules)
        if len(left) > KEPT and look.images >= GROUP:
            looked = self._values(method, left, look)
            calls += sum(s.nfe for s in left) * look.images
            left = sorted((s for s in left if s.hash in looked), key=lambda s: looked[s.hash])[:KEPT]
        values = self._values(method, left, screen)
        best = min(left, key=lambda s: values.get(s.hash, float("inf")))
        # What was looked at goes on from there.
        calls += sum(s.nfe for s in left) * (screen.images - (look.images if looked else 0))
        return Choice(method, best, values[best.hash], calls), looked or values

    def _values(self, method: str, schedules: Sequence[SolverSchedule], rung: Rung) -> dict[str, float]:
        records = self._evaluated([(s, f"peer:{method}") for s in schedules], rung)
        values = {h: r.value for h, r in records.items() if r.value is not None}
        if not values:
            raise ConfigurationError(
                f"no schedule of {method} could be evaluated: {next(iter(records.values())).error}"
            )
        return values

    def _evaluated(self, work: Sequence[tuple[SolverSchedule, str]], rung: Rung) -> dict[str, EvaluationRecord]:
        s = self.settings
        records = evaluate_missing(s.subject, work, rung, self.root, self.execution, STUDY, self._on_record)
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


def _row(choice: Choice, record: EvaluationRecord) -> PeerRow:
    row = row_of(record, choice.method, choice.schedule.name or choice.schedule.hash)
    return PeerRow(**vars(row), searched=choice.value, calls=choice.calls)
