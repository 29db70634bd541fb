"""Solver schedules: one objective, successive halving, finals of the best at each NFE, presets to be beaten."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fewstep.pipeline.policies.halving import PRESET, WARM, HalvingPolicy
from fewstep.pipeline.problems.schedule_report import ScheduleReport
from fewstep.pipeline.proposers.base import WARM_REFINED
from fewstep.pipeline.proposers.options import OnRefit, S3Options
from fewstep.pipeline.proposers.optuna import OptunaProposer, SamplerFor
from fewstep.pipeline.proposers.s3 import S3Sampler
from fewstep.pipeline.proposers.samplers import OWN, stock_sampler
from fewstep.pipeline.search import Search, Seed
from fewstep.pipeline.stages.finals import Finals
from fewstep.pipeline.stages.refine import Refine
from fewstep.search_spaces.point import Point, as_point
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.grids import preset_on_grid

SEED_SOLVERS = ("unipc-2-bh2", "unipc-3-bh2", "dpmpp-3m")
SEED_GRIDS = ("quadratic-zero", "uniform-lambda-zero", "karras-zero", "uniform-t-zero")


def analytic_first_steps(noise: NoiseSchedule, nfe: int) -> list[Point]:
    """Presets with one step more, whose first call is replaced by the noise itself: the search's first guesses.

    No preset saves that call, and a sampler would need many mutations to find it together with good times.
    """
    names = [f"{solver}/{where}" for where in SEED_GRIDS for solver in SEED_SOLVERS]
    schedules = [preset_on_grid(name, noise, nfe + 1).model_copy(update={"first_call": "zero_x0"}) for name in names]
    return list({s.hash: as_point(s) for s in schedules}.values()) if nfe > 1 else []


class ScheduleProblem(ScheduleReport):
    """See the module's docstring."""

    def search(self, on_refit: OnRefit | None = None) -> Search:
        """A new search."""
        s = self.settings
        proposer = OptunaProposer(
            self.schedules,
            self._sampler(on_refit),
            s.sampler,
            s.seed,
            self.check,
            list(dict.fromkeys((self.ladder.screen.name, self.ladder.main.name))),
        )
        policy = HalvingPolicy(s, self.presets, self._seeds())
        stages = [Finals(), Refine(s, self.teacher.nfe)]
        return Search(s.nfes, s.budget, self.ladder, proposer, policy, stages, s.patience)

    def _seeds(self) -> list[Seed]:
        """Warm starts that no preset equals, after the presets, each once."""
        s = self.settings
        warm = {w.hash: (WARM if w.corrections is None else WARM_REFINED, w) for w in self.warm if w.nfe in s.nfes}
        presets = {p.hash: (f"{PRESET}{name}", p) for nfe in s.nfes for name, p in self.presets[nfe].items()}
        both = presets | {key: seed for key, seed in warm.items() if key not in presets}
        return [(origin, as_point(schedule)) for origin, schedule in both.values()]

    def _sampler(self, on_refit: OnRefit | None) -> SamplerFor:
        s = self.settings
        if s.sampler not in OWN:
            return stock_sampler(s.sampler, s.seed, 1, self.schedules.flat)
        options, seeds = S3Options(random_trials=s.random_trials, surrogate=s.surrogate), None
        if s.sampler == "evolution":
            # The published operators alone, from presets and random members.
            options = replace(options, surrogate="none", across=0.0, local=0.0)
        else:
            seeds = partial(analytic_first_steps, self.files.noise)
        ours = S3Sampler(self.schedules, s.nfes, seed=s.seed, options=options, on_refit=on_refit, seeds=seeds)
        return lambda number: ours
