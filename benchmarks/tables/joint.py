"""Networks of few bits and schedules: chosen one after the other, one for the other, or together.

For every search seed and number of calls one budget of denoiser calls, calibration apart, pays for all configs:

    quantised   a search of schedules in full precision; its find samples with every config's network
    fixed       a network calibrated along a preset, and a search of schedules for that network, which a config's
                part of the budget pays for
    in turn     half the budget for the search in full precision; its find, along which the networks are calibrated,
                is tuned for each of them with its part of the rest
    joint       one search of networks and schedules together; its best of those no larger than a config's network

Judged on images that chose nothing, by the search's metric and another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from benchmarks.tables.engine import Conditions, Engine, Picture, Row, Sheet, Subject, Table, measured
from benchmarks.tables.front import INTERVAL, Seeds, seeds_of, together
from fewstep.pipeline.problems.networks import CALIBRATION_PRESET, NetworkProblem
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.stages.refine_plan import refine_plan
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import quantization_of
from fewstep.search_spaces.quantization import parse_config
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.load import load_denoiser
from fewstep.tasks.quantization.build import Recipe, cached
from fewstep.tasks.quantization.storage import find_quantized
from fewstep.tasks.sampling.grids import preset_on_grid

QUANTISED, FIXED, IN_TURN, JOINT = "quantised", "fixed", "in turn", "joint"
EXACT = "full precision"
# Images by which a tuned schedule and its start are compared.
JUDGED_ON = 500


@dataclass(frozen=True)
class Chosen:
    """What a method chose for a config's place: a schedule, the network that it samples with, and what that took."""

    method: str
    config: str
    schedule: SolverSchedule
    network: Path | None
    calls: int


class Joint(Table):
    """`budget`: denoiser calls that a method has for one seed and number of calls. `configs` are named ones.

    The last sheet's `versus` compares every method with `quantised` at the same config.
    """

    study: ClassVar[str] = "joint"

    model: str
    labels: str = "none"
    configs: tuple[str, ...] = ("w8a8-tfmq-full", "w4a8-mixed-full", "w4a4-tfmq-full")
    nfes: tuple[PositiveInt, ...] = (4, 8)
    searches: Seeds = (0, 1, 2, 3, 4)
    budget: PositiveInt = 120_000
    teacher: str = "unipc-2-bh2/karras-zero@64"
    judges: tuple[str, ...] = ("frechet:judge",)
    report_images: PositiveInt = 2000

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """A row a search, method and config; and all searches together."""
        rows = list[Row]()
        for seed in self.searches:
            below = engine.below(f"seed-{seed}")
            for nfe in self.nfes:
                contest = Contest(self.model_copy(update={"seed": seed}), below, nfe)
                rows += [{"search": seed, **contest.row(chosen)} for chosen in contest.chosen()]
            seeds = seeds_of(rows)
            yield Sheet(f"{engine.name}_searches", rows, seeds, NOTES)
            if len(seeds) > 1:
                yield Sheet(engine.name, list(self.means(rows)), seeds, NOTES | {"interval": INTERVAL})

    def means(self, rows: list[Row]) -> Iterator[Row]:
        """Every config's methods against its find that was quantised."""
        for config in (EXACT, *self.configs):
            own = [row for row in rows if row["config"] == config]
            yield from together(own, self.judges, ("config",), base=QUANTISED)


NOTES = {"calls": "denoiser calls of search and calibration; what all configs share counts for each"}


class Contest:
    """The methods at one number of calls, on one seed."""

    def __init__(self, asked: Joint, engine: Engine, nfe: int) -> None:
        self.asked, self.engine, self.nfe = asked, engine, nfe
        self.files, self.conditions = find_model(asked.model), Conditions(labels=asked.labels)
        self.cache = (engine.root / "quantized").absolute()
        # No search sees the judge, so that none has a guard.
        self.asking: dict[str, Any] = {
            "model": asked.model, "conditions": self.conditions, "seed": asked.seed, "teacher": asked.teacher,
            "guard": "none",
        }  # fmt: skip

    @cached_property
    def full(self) -> int:
        """Bytes of the network in full precision."""
        return 4 * sum(p.numel() for p in load_denoiser(self.files).network.module.parameters())

    def chosen(self) -> Iterator[Chosen]:
        """What every method chooses; the whole search's find in full precision first."""
        whole, half, each = self.asked.budget, self.asked.budget // 2, len(self.asked.configs)
        found, calls = self.search("whole", whole)
        start, first = self.search("half", half)
        yield Chosen(QUANTISED, EXACT, found, None, calls)
        preset = preset_on_grid(CALIBRATION_PRESET, self.files.noise, self.nfe)
        for config in self.asked.configs:
            network, more = self.network(config, found)
            yield Chosen(QUANTISED, config, found, network, calls + more)
            network, more = self.network(config, preset)
            own, spent = self.search(f"fixed-{config}", whole // each, network)
            yield Chosen(FIXED, config, own, network, spent + more)
            network, more = self.network(config, start)
            own, spent = self.tuned(start, network, half // each)
            yield Chosen(IN_TURN, config, own, network, first + spent + more)
        yield from self.joint(whole, preset)

    def search(self, name: str, budget: int, network: Path | None = None) -> tuple[SolverSchedule, int]:
        """The best schedule of a search for a network, and its calls."""
        asked = {"quantized": str(network or ""), "budget": budget, **self.asking}
        found = self.engine.searched(name, self.nfe, (self.nfe,), **asked)
        return found.schedule, found.calls

    def tuned(self, start: SolverSchedule, network: Path, most: int) -> tuple[SolverSchedule, int]:
        """What tuning makes of a schedule for a network, the start itself where that is better, and its calls."""
        s = self.asked
        subject = Subject(s.model, conditions=self.conditions, quantized=str(network))
        calls = most - 2 * self.nfe * JUDGED_ON
        plan = refine_plan(SearchSettings.build(nfes=(self.nfe,), **self.asking), self.nfe, 0, calls)
        found, _, spent = self.engine.refined(subject, start, start, plan, JUDGED_ON, s.seed)
        return found, spent

    def network(self, config: str, schedule: SolverSchedule) -> tuple[Path, int]:
        """A config's network, calibrated along a schedule, and the calls of that."""
        recipe = Recipe(parse_config(config), schedule, self.conditions)
        folder, _ = cached(self.files, recipe, self.cache, self.engine.execution.device)
        return folder, int(find_quantized(folder).description["cost"]["denoiser_calls"])

    def joint(self, budget: int, preset: SolverSchedule) -> Iterator[Chosen]:
        """For every config the joint search's best among what is no larger and takes no more bit operations."""
        asked = SearchSettings.build(
            study=f"{Joint.study}-{JOINT}", space="joint", nfes=(self.nfe,), budget=budget, **self.asking
        )
        study = Study(self.engine.root / "searches" / f"{JOINT}-{self.nfe}", asked)
        state, problem = study.find(self.engine.execution, self.engine.told), study.problem
        assert isinstance(problem, NetworkProblem)
        calls = sum(r.denoiser_calls for r in study.records() if r.rung != "report")
        members = list[tuple[SolverSchedule, Path]]()
        for member in problem.members(state):
            config, schedule = quantization_of(member.trial.candidate.point), member.trial.candidate.schedule
            assert config is not None
            members.append((schedule, problem.network_path(study.root, config)))
        for name in self.asked.configs:
            most = size(self.network(name, preset)[0])
            within = [m for m in members if all(x <= y for x, y in zip(size(m[1]), most, strict=True))]
            for schedule, network in within[:1]:
                yield Chosen(JOINT, name, schedule, network, calls)

    def row(self, chosen: Chosen) -> Row:
        """A line of the table: what was chosen, on the report's images."""
        report = replace(self.asked.reported_on(self.asked.report_images), also=self.asked.judges)
        subject = Subject(self.asked.model, conditions=self.conditions, quantized=str(chosen.network or ""))
        (record,) = self.engine.records(subject, [(chosen.schedule, f"{chosen.method}:{chosen.config}")], report)
        held = size(chosen.network)[0] if chosen.network else self.full
        head = {"model": record.model, "method": chosen.method, "nfe": record.nfe, "config": chosen.config}
        tail = {"images": record.images, "bytes": held, "calls": chosen.calls}
        return head | measured(record, chosen.method, self.asked.judges) | tail


def size(folder: Path) -> tuple[int, int]:
    """Bytes and bit operations of a network on disk."""
    stored = find_quantized(folder)
    return stored.bytes, int(stored.description["bit_operations"])


DIGITS = Joint(model="digits-ddpm")
