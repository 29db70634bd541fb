"""Where quantisation configs, alone or with schedules, come from: named ones first, then children of the best.

A proposal is a function of the seed, the trial's number and the trials before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from fewstep.errors import ScheduleError
from fewstep.pipeline.climb import WARM, Trial
from fewstep.pipeline.evaluator import Candidate
from fewstep.pipeline.scope import Scope
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.genome import to_genome, to_schedule
from fewstep.search_spaces.joint_space import JointGenome, JointSpace
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.search_spaces.quantization_space import QuantizationSpace
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.sampling.grids import preset_on_grid

NAMES = tuple(
    f"{bits}-{procedure}-{coverage}"
    for bits in ("w8a8", "w4a8")
    for procedure in ("naive", "tfmq")
    for coverage in ("paper", "full")
)
PRESETS = (
    "unipc-2-bh2/quadratic-zero",
    "unipc-3-bh2/uniform-lambda-zero",
    "dpmpp-3m/quadratic-zero",
    "unipc-2-bh2/karras-zero",
)
NAMED, OWN = "named:", "evolution"
PARENTS, ATTEMPTS = 20, 60
EXPLORE, CROSSOVER = 0.1, 0.5

Seed = tuple[str, SolverSchedule, QuantizationConfig]


def named_members(space: QuantizationSpace) -> dict[str, QuantizationConfig]:
    """The named configs as the space has them, by name; what a cap on iterations changes is part of the name."""
    found = {}
    for name in NAMES:
        config = named(name)
        member = space.member(config)
        changes = {field: value for field, value in member.model_dump().items() if value != getattr(config, field)}
        found[name + "".join(f"+{field}={value}" for field, value in changes.items())] = member
    return found


class QuantizationProposer:
    """Proposes candidates with a config; schedules change too where the settings say so."""

    def __init__(self, settings: SearchSettings, scope: Scope) -> None:
        assert scope.quantization is not None
        assert scope.calibration is not None
        self._settings, self._scope = settings, scope
        self._configs, self._base = scope.quantization, scope.calibration
        self._joint = JointSpace(scope.space, scope.quantization) if settings.space == "joint" else None

    def seeds(self) -> list[Seed]:
        """(origin, schedule, config) to begin with: named configs, each on every schedule to start from."""
        configs = named_members(self._configs)
        found = [
            (f"{NAMED}{name}" if origin is None else f"{origin}:{name}", schedule, config)
            for name, config in configs.items()
            for origin, schedule in self._first_schedules()
        ]
        distinct: dict[tuple[str, str], Seed] = {}
        for seed in found:
            distinct.setdefault((seed[1].hash, seed[2].hash), seed)
        return list(distinct.values())

    def _first_schedules(self) -> Iterator[tuple[str | None, SolverSchedule]]:
        """Origin, where it is not the config that names the seed, and schedule."""
        if self._joint is None:
            yield None, self._base
            return
        for text in self._settings.warm_start:
            schedule = SolverSchedule.from_json(text)
            if schedule.nfe in self._settings.nfes:
                to_genome(schedule)  # outside the space it could have no children: better to say so at the start
                yield WARM, schedule
        for nfe in self._settings.nfes:
            for name in PRESETS:
                yield None, preset_on_grid(name, self._scope.noise, nfe)

    def candidate(self, number: int, seed: Seed) -> Candidate:
        """A seed as a trial."""
        origin, schedule, config = seed
        return Candidate(number, schedule, origin, self._parameters(schedule, config), config)

    def propose(
        self, number: int, nfe: int, parents: Sequence[Trial], others: Sequence[Trial], seen: set[str]
    ) -> Candidate | None:
        """A candidate at `nfe` that is not among the hashes in `seen`; None where none was found.

        `parents` are the trials at that NFE, `others` all trials, both best first.
        """
        rng = Random(f"{self._settings.seed}/{number}")
        for attempt in range(ATTEMPTS):
            # When children repeat what is known, there is little left near the parents.
            lost = attempt > ATTEMPTS // 2
            fresh = lost or len(parents) < 2 or rng.random() < EXPLORE
            schedule, config = self._random(nfe, rng) if fresh else self._child(parents, others, rng)
            candidate = Candidate(number, schedule, "random" if fresh else OWN, {}, config)
            if candidate.hash in seen:
                continue
            try:
                self._scope.check(schedule)
            except ScheduleError:
                continue
            return self.candidate(number, (candidate.origin, schedule, config))
        return None

    def _random(self, nfe: int, rng: Random) -> tuple[SolverSchedule, QuantizationConfig]:
        if self._joint is None:
            return self._base, self._configs.random(rng)
        genome = self._joint.random(nfe, rng)
        return to_schedule(genome.solver), genome.config

    def _child(
        self, parents: Sequence[Trial], others: Sequence[Trial], rng: Random
    ) -> tuple[SolverSchedule, QuantizationConfig]:
        a = _pick(parents, rng).candidate
        crossed = rng.random() < CROSSOVER
        # The second parent may have another NFE: its config fits all the same.
        b = _pick(parents if rng.random() < 0.5 else others, rng).candidate if crossed else None
        if self._joint is None:
            config = _config(a)
            if b is not None:
                config = self._configs.cross(config, _config(b), rng)
            return self._base, self._configs.mutate(config, rng)
        genome = JointGenome(to_genome(a.schedule), _config(a))
        if b is not None:
            genome = self._joint.cross(genome, JointGenome(to_genome(b.schedule), _config(b)), rng)
        genome = self._joint.mutate(genome, rng)
        return to_schedule(genome.solver), genome.config

    def _parameters(self, schedule: SolverSchedule, config: QuantizationConfig) -> dict[str, object]:
        if self._joint is None:
            return self._configs.parameters(config)
        return self._joint.parameters(JointGenome(to_genome(schedule), config))


def _pick(trials: Sequence[Trial], rng: Random) -> Trial:
    """One of the first PARENTS trials; the first is twice as likely as the middle one."""
    count = min(len(trials), PARENTS)
    return trials[rng.choices(range(count), range(count, 0, -1))[0]]


def _config(candidate: Candidate) -> QuantizationConfig:
    assert candidate.quantization is not None
    return candidate.quantization
