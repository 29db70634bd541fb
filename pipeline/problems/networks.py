"""Changes of the network, for one schedule or together with it: quality, size and cost at once, on a Pareto front.

Objectives, all to be small:

    quality   distance to the full-precision teacher at the screen, the study's metric at the other rungs
    size      bytes of the packed network
    latency   bit operations an image: multiply-adds x weight bits x activation bits x NFE, a stand-in that is the
              same on every machine, and no measured time

A space of another package has the quality, and the figures that its `SpaceKind` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError
from fewstep.pipeline.policies.pareto import ParetoPolicy, Vector
from fewstep.pipeline.problems.base import Publication, each_once, found
from fewstep.pipeline.problems.model import ModelProblem
from fewstep.pipeline.proposers.base import WARM, Proposer
from fewstep.pipeline.proposers.evolution import ParetoEvolution
from fewstep.pipeline.proposers.options import OnRefit
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.proposers.samplers import OWN, stock_sampler
from fewstep.pipeline.reports.front import EXACT, publish_front
from fewstep.pipeline.reports.rows import FOUND, Row, row_of
from fewstep.pipeline.search import Search, Seed, Stage
from fewstep.pipeline.settings import POPULATION, SearchSettings
from fewstep.pipeline.sizes import KEPT
from fewstep.pipeline.stages.finals import Finals
from fewstep.pipeline.stages.refine import Refine
from fewstep.pipeline.trial import Candidate, Trial, Work
from fewstep.search_spaces.joint import ProductSpace
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.point import Point, QuantizationPoint, SchedulePoint, as_point, joint, quantization_of
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig, named
from fewstep.search_spaces.quantization.space import CALIBRATED_ON, QuantizationSpace
from fewstep.search_spaces.registry import SpaceKind
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.space import Space
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.matrices import count_matrices
from fewstep.tasks.quantization.bits import IMAGES, ROWS
from fewstep.tasks.sampling.grids import preset_on_grid, searched_preset
from fewstep.tasks.work import Subject

NAMES = tuple(
    f"{bits}-{procedure}-{coverage}"
    for bits in ("w8a8", "w4a8")
    for procedure in ("naive", "tfmq")
    for coverage in ("paper", "full")
)
# With bits by layer, which leave nothing to choose at 8.
MIXED_NAMES = tuple(name.replace("w4a8-tfmq", "w4a8-mixed") for name in NAMES)
PRESETS = (
    "unipc-2-bh2/quadratic-zero",
    "unipc-3-bh2/uniform-lambda-zero",
    "dpmpp-3m/quadratic-zero",
    "unipc-2-bh2/karras-zero",
)
# What is calibrated with where the settings do not say, at the largest NFE.
CALIBRATION_PRESET = "unipc-2-bh2/karras-zero"
NAMED = "named:"
# Stands for what bits by layer are allotted by, among the hashes of calibrated configs.
ALLOTTED = "allotted"
NOTES = {
    "size_bytes": "packed weights with their grids; of full precision 4 bytes a parameter",
    "bit_operations": "multiply-adds x weight bits x activation bits x NFE for one image: a stand-in for time",
}


@dataclass(frozen=True)
class QuantizedRow(Row):
    """A row with the other two objectives, see NOTES."""

    size_bytes: int
    bit_operations: int
    quantization: str


@dataclass(frozen=True)
class Member:
    """A member of the front. `stem` names its files; the first of an NFE has the best quality."""

    method: str
    stem: str
    trial: Trial


def named_members(space: QuantizationSpace) -> dict[str, QuantizationConfig]:
    """The named configs as the space has them, by name; what a cap on iterations changes is part of the name."""
    members = {}
    for name in MIXED_NAMES if space.allot else NAMES:
        config = named(name)
        member = space.member(config)
        changes = {field: value for field, value in dict(member).items() if value != getattr(config, field)}
        members[name + "".join(f"+{field}={value}" for field, value in changes.items())] = member
    return members


class NetworkProblem(ModelProblem):
    """See the module's docstring. The settings' space is `quantization`, another package's, or `joint` with schedules.

    Names joined by `+` are searched together, `joint` is `schedule+quantization`.
    """

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__(settings)
        self.check(SchedulePoint(schedule=self.calibration))

    @property
    def kinds(self) -> list[str]:
        """What is searched, by name."""
        space = self.settings.space
        return ["schedule", "quantization"] if space == "joint" else space.split("+")

    @property
    def moves_schedule(self) -> bool:
        """Whether schedules are searched too."""
        return "schedule" in self.kinds

    @cached_property
    def calibration(self) -> SolverSchedule:
        """The schedule along which networks are made; where schedules are not searched, that of every candidate.

        Where none is given, the longest tuned one that the search starts from.
        """
        if self.settings.base_schedule:
            return SolverSchedule.from_json(self.settings.base_schedule)
        tuned = [s for s in self.warm if s.nfe in self.settings.nfes and s.corrections is not None]
        if tuned:
            return max(tuned, key=lambda schedule: schedule.nfe)
        return preset_on_grid(CALIBRATION_PRESET, self.files.noise, max(self.settings.nfes))

    @cached_property
    def subject(self) -> Subject:
        """What is evaluated."""
        s = self.settings
        return Subject(
            s.model,
            s.features,
            s.reference,
            s.conditions,
            s.statistics,
            calibration=self.calibration.to_json(),
            loading=s.loading,
        )

    @cached_property
    def networks(self) -> dict[str, Space[Any]]:
        """The spaces of what changes the network, by kind."""
        calls = self.calibration.nfe
        spaces: dict[str, Space[Any]] = {}
        for kind in self.kinds:
            if kind == "quantization":
                spaces[kind] = QuantizationSpace(calls, self.settings.calibration_iterations, self.settings.allot_bits)
            elif kind != "schedule":
                spaces[kind] = self._kind(kind).space(calls)
        return spaces

    @staticmethod
    def _kind(kind: str) -> SpaceKind:
        found = SPACES.load(kind)
        if not isinstance(found, SpaceKind):
            raise ConfigurationError(f"space {kind!r} cannot be searched together with others, or for one schedule")
        return found

    @cached_property
    def space(self) -> ProductSpace:
        """The product of all of them."""
        if self.moves_schedule:
            return ProductSpace((self.schedules, *self.networks.values()))
        return ProductSpace(tuple(self.networks.values()), (SchedulePoint(schedule=self.calibration),))

    @cached_property
    def _measured_calls(self) -> int:
        """Most calls of measuring what rounding each layer changes, once a study."""
        return IMAGES * self.calibration.nfe + ROWS * (1 + count_matrices(self.files.unet))

    # -- the search -----------------------------------------------------------------------------------

    def search(self, on_refit: OnRefit | None = None) -> Search:
        """A new search."""
        s, seeds = self.settings, self._seeds()
        calibrated: dict[str, int] = {}

        def calibration_calls(search: Search, candidate: Candidate) -> int:
            """Trajectories that a config is calibrated on, whatever its schedules, and what allots bits: each once."""
            config = quantization_of(candidate.point)
            if config is None:
                return 0
            costs = {config.hash: config.images * self.calibration.nfe}
            if config.allocation != "even":
                costs[ALLOTTED] = self._measured_calls
            first = {name: calibrated.get(name, candidate.trial) for name in costs}
            if candidate.trial in search.trials:
                # It is adopted: until then it may still be left out.
                calibrated.update(first)
            return sum(calls for name, calls in costs.items() if first[name] == candidate.trial)

        def dearest() -> int:
            quantised = self.networks.get("quantization")
            if not isinstance(quantised, QuantizationSpace):
                return 0
            measured = self._measured_calls if quantised.allot and ALLOTTED not in calibrated else 0
            return CALIBRATED_ON[1] * self.calibration.nfe + measured

        always = WARM if self.moves_schedule else NAMED
        policy = ParetoPolicy(
            self.ladder, seeds, self.objectives, s.keep or KEPT, s.front, self.check, always, calibration_calls, dearest
        )
        proposer = self._proposer(policy, on_refit)
        stages: list[Stage] = [Finals(s.finals, s.finalist_images, s.front)]
        if s.refine:
            stages.insert(0, Refine(s, self.teacher.nfe, policy.tunable))
        return Search(s.nfes, s.budget, self.ladder, proposer, policy, stages, s.patience, self.prepaid)

    def objectives(self, record: EvaluationRecord | None) -> Vector | None:
        """See the module's docstring; None without a complete record."""
        if record is None or record.status != "complete" or record.value is None:
            return None
        figures, values = record.metrics, [record.value]
        for kind in self.networks:
            if kind == "quantization":
                values += [figures["size_bytes"], figures["bit_operations_a_call"] * record.nfe]
            else:
                values += [figures[name] for name in self._kind(kind).objectives]
        return tuple(values)

    def _proposer(self, policy: ParetoPolicy, on_refit: OnRefit | None) -> Proposer:
        s = self.settings
        if s.sampler in OWN:
            ranked_by = s.surrogate if s.sampler == "s3" else "none"
            return ParetoEvolution(
                self.space, s.seed, self.check, policy.standing, policy.screened, ranked_by, on_refit
            )
        count = 1 + sum(2 if k == "quantization" else len(self._kind(k).objectives) for k in self.networks)
        sampler = stock_sampler(s.sampler, s.seed, count, self.space.flat, s.population or POPULATION)
        return OptunaProposer(
            self.space, sampler, s.sampler, s.seed, self.check, [self.ladder.screen.name], count, self.moves_schedule
        )

    def _seeds(self) -> list[Seed]:
        """Named configs, or the seeds of another package's space.

        All on the first schedule of each NFE, the others on the first of them: the search tells how they go together.
        """
        changes: dict[str, list[Point]] = {"": []}
        for kind, space in self.networks.items():
            own: dict[str, Point]
            if isinstance(space, QuantizationSpace):
                own = {name: QuantizationPoint(config=c) for name, c in named_members(space).items()}
            else:
                own = self._kind(kind).seeds(space)
            changes = {
                f"{first} {name}".strip(): [*points, point]
                for first, points in changes.items()
                for name, point in own.items()
            }
        of_first = [(name, points) for name, points in changes.items() if points]
        seeds, begun = list[Seed](), set[int]()
        for origin, schedule in self._first_schedules():
            for name, points in of_first[:1] if schedule.nfe in begun else of_first:
                told = f"{NAMED}{name}" if origin is None else f"{origin}:{name}"
                seeds.append((told, joint(as_point(schedule), *points)))
            begun.add(schedule.nfe)
        distinct: dict[str, Seed] = {}
        for origin, point in seeds:
            distinct.setdefault(point.hash, (origin, point))
        return list(distinct.values())

    def _first_schedules(self) -> list[tuple[str | None, SolverSchedule]]:
        """Origin, where it is not the network that names the seed, and schedule."""
        if not self.moves_schedule:
            return [(None, self.calibration)]
        nfes = self.settings.nfes
        first: list[tuple[str | None, SolverSchedule]] = [(WARM, s) for s in self.warm if s.nfe in nfes]
        return first + [(None, searched_preset(name, self.files.noise, nfe)) for nfe in nfes for name in PRESETS]

    # -- report ---------------------------------------------------------------------------------------

    @staticmethod
    def front(search: Search) -> list[Trial]:
        """The front as the search itself judged it."""
        assert isinstance(search.policy, ParetoPolicy)
        return search.policy.front(search)

    def members(self, search: Search) -> list[Member]:
        """The front by NFE, best quality first."""
        members = []
        front = self.front(search)
        for nfe in sorted(self.settings.nfes):
            own = [t for t in front if t.candidate.nfe == nfe]
            own.sort(key=lambda t: self._quality(search, t))
            for i, trial in enumerate(own):
                end = f"-{i + 1}" if i else ""
                members.append(Member(f"{FOUND}{end}", f"nfe{nfe}{end}", trial))
        return members

    @staticmethod
    def _quality(search: Search, trial: Trial) -> tuple[float, int]:
        rungs = (search.ladder.finals, search.ladder.main, search.ladder.screen)
        return next(v for v in (trial.value(rung) for rung in rungs) if v is not None), trial.number

    def contenders(self, search: Search) -> list[tuple[str, Candidate]]:
        """(method, candidate) of every row: the front, full precision, and each named one where it was judged best."""
        front = self.members(search)
        rows = [(m.method, found(m.trial.candidate)) for m in front]
        on_front = {m.trial.candidate.hash for m in front}
        for nfe in sorted(self.settings.nfes):
            best = next((m.trial.candidate for m in front if m.trial.candidate.nfe == nfe), None)
            if best is not None:
                rows.append((EXACT, Candidate(best.trial, as_point(best.schedule), EXACT)))
            yardsticks: dict[str, Candidate] = {}
            for trial in search.best(nfe, search.ladder.main):
                if trial.candidate.origin.startswith(NAMED):
                    yardsticks.setdefault(trial.candidate.origin.removeprefix(NAMED), trial.candidate)
            rows += [(name, candidate) for name, candidate in yardsticks.items() if candidate.hash not in on_front]
        return rows

    def report_work(self, search: Search) -> list[Work]:
        """What the report has to evaluate, each candidate once."""
        return each_once([(candidate, search.ladder.report) for _, candidate in self.contenders(search)])

    def report_rows(self, search: Search, records: Sequence[EvaluationRecord]) -> list[Row]:
        """The final table from the report's records."""
        by_hash = {r.candidate: r for r in records if r.rung == search.ladder.report.name and r.value is not None}
        known = (r.metrics for t in search.trials.values() for r in t.records.values())
        sizes = next((m for m in known if "parameters" in m), {})
        rows: list[Row] = []
        for method, candidate in self.contenders(search):
            record = by_hash.get(candidate.hash)
            if record is not None:
                base = row_of(record, method, candidate.schedule.name or candidate.schedule.hash)
                rows.append(self._with_sizes(base, candidate, record, sizes) if sizes else base)
        return rows

    @staticmethod
    def _with_sizes(row: Row, candidate: Candidate, record: EvaluationRecord, sizes: dict[str, float]) -> QuantizedRow:
        config = quantization_of(candidate.point)
        if config is None:
            size = sizes["parameters"] * FULL_PRECISION / 8
            operations = sizes["multiply_adds_a_call"] * FULL_PRECISION**2
        else:
            size, operations = record.metrics["size_bytes"], record.metrics["bit_operations_a_call"]
        name = config.name if config else ""
        return QuantizedRow(
            **asdict(row), size_bytes=int(size), bit_operations=int(operations) * record.nfe, quantization=name
        )

    @property
    def notes(self) -> dict[str, str]:
        """What the columns mean that a schedule's table does not have."""
        return NOTES if "quantization" in self.kinds else {}

    # -- files ----------------------------------------------------------------------------------------

    def network_path(self, root: Path, config: QuantizationConfig) -> Path:
        """Where the network lies that a study in `root` calibrated for a config, if it did so on this machine."""
        from fewstep.tasks.quantization.build import Recipe

        recipe = Recipe(config, self.calibration, self.settings.conditions, self.statistics)
        return root / "quantized" / recipe.key(self.files)

    def publish(self, search: Search, rows: Sequence[Row], to: Publication) -> dict[str, Path]:
        """Point, config and, where it was searched, schedule of every member, what they share, and pictures."""
        return publish_front(self, search, to)
