"""Solver schedules: one objective, successive halving, finals of the best at each NFE, presets to be beaten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.policies.halving import HalvingPolicy
from fewstep.pipeline.problems.model import paired
from fewstep.pipeline.problems.schedule_report import ScheduleReport
from fewstep.pipeline.proposers.base import ANALYTIC, PORTFOLIO, PRESET, WARM, WARM_REFINED, Proposer
from fewstep.pipeline.proposers.options import OnRefit, S3Options
from fewstep.pipeline.proposers.optuna import OptunaProposer
from fewstep.pipeline.proposers.s3 import S3Proposer
from fewstep.pipeline.proposers.samplers import OWN, stock_sampler
from fewstep.pipeline.search import Search, Seed, Stage
from fewstep.pipeline.settings import NO_PORTFOLIO, POPULATION
from fewstep.pipeline.sizes import can_pair, first_look
from fewstep.pipeline.stages.finals import Finals
from fewstep.pipeline.stages.preset_order import Known, of_schedule
from fewstep.pipeline.stages.presets import FIRST, Presets, Screens
from fewstep.pipeline.stages.refine import Refine, calls_of_each
from fewstep.pipeline.stages.refine_plan import refine_plan
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.portfolio import Portfolio, load_portfolio
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.refinement.features import check_tunable
from fewstep.tasks.sampling.grids import SEARCH_GRIDS, all_presets


def analytic_first_steps(
    noise: NoiseSchedule, nfe: int, grids: Sequence[str] = SEARCH_GRIDS
) -> dict[str, SolverSchedule]:
    """Presets with one step more, by name, whose first call is replaced by the noise itself.

    No preset saves that call, and a sampler would need many mutations to find it together with good times.
    """
    if nfe < 2:
        return {}
    longer = all_presets(noise, nfe + 1, tuple(grids))
    # What starts late has an analytic first call already.
    return {
        name: schedule.model_copy(update={"first_call": "zero_x0"})
        for name, schedule in longer.items()
        if schedule.first_call == "model"
    }


class ScheduleProblem(ScheduleReport):
    """See the module's docstring."""

    def search(self, on_refit: OnRefit | None = None) -> Search:
        """A new search."""
        s = self.settings
        if s.refine:
            check_tunable(Setting(self.subject, self.files), s.refine_to)
        proposer = self._proposer(on_refit)
        tuned, finals = Refine(s, self.teacher.nfe), Finals(s.finals, s.finalist_images, s.finalists)
        stages: list[Stage] = [self._presets(), tuned, finals]
        policy = HalvingPolicy(s, self._seeds())
        return Search(s.nfes, s.budget, self.ladder, proposer, policy, stages, s.patience, self.prepaid)

    def check_budget(self) -> None:
        """See `ModelProblem`; a descent by gradient that its share does not pay is refused too."""
        super().check_budget()
        s = self.settings
        share = (s.budget - self.prepaid) // len(s.nfes)
        for nfe in s.nfes if s.refine and s.refine_to != "moments" else ():
            most = calls_of_each(s, share, nfe)
            calls = refine_plan(s, nfe, self.teacher.nfe, most).calls(nfe, self.teacher.nfe)
            if calls > most:
                raise ConfigurationError(
                    f"one refinement to {s.refine_to} at NFE {nfe} takes {calls:,} calls at least, and its part of the "
                    f"budget is {max(0, most):,}: raise --budget or --refine, or tune to moments"
                )

    def known(self, nfe: int) -> list[Known]:
        """What is looked at first at an NFE, each schedule once.

        Presets, the same with an analytic first call, and what was found on other models.
        """
        s, noise = self.settings, self.files.noise
        analytic = analytic_first_steps(noise, nfe, s.grids)
        tables = {PRESET: self.presets[nfe], ANALYTIC: analytic, PORTFOLIO: self._portfolio(nfe)}
        found: dict[str, Known] = {}
        for kind, table in tables.items():
            for name, schedule in table.items():
                point = as_point(schedule)
                found.setdefault(point.hash, of_schedule(f"{kind}{name}", schedule, point))
        return list(found.values())

    @cached_property
    def _collected(self) -> Portfolio | None:
        given = self.settings.portfolio
        return None if given == NO_PORTFOLIO else load_portfolio(given)

    def _portfolio(self, nfe: int) -> Mapping[str, SolverSchedule]:
        if self._collected is None:
            return {}
        noise = self.files.noise
        placed = self._collected.for_model(self.files.hash, nfe, noise.lambda_start, noise.lambda_end)
        return {name: schedule for name, schedule in placed.items() if self._fits(schedule)}

    def _fits(self, schedule: SolverSchedule) -> bool:
        try:
            self.check(as_point(schedule))
        except (ScheduleError, ConfigurationError):
            return False
        return True

    def named(self, nfe: int) -> dict[str, str]:
        """See ModelProblem."""
        return {known.origin: known.point.hash for known in self.known(nfe)}

    def _presets(self) -> Presets:
        s = self.settings
        assert s.frechet_images
        assert s.look_images
        pairs = can_pair(s, s.frechet_images)
        first = Rung(FIRST, paired(s.objective) if pairs else s.objective, first_look(s), s.noise_seed)
        compare = None
        if s.screen == "auto":
            distance = Rung("screen", "distance", s.distance_images, s.noise_seed)
            compare = Screens(self.ladder.screen, distance, self.teacher.nfe * s.distance_images)
        return Presets({nfe: self.known(nfe) for nfe in s.nfes}, s.presets, first, compare)

    def _seeds(self) -> list[Seed]:
        """Warm starts, each once."""
        s = self.settings
        warm = {w.hash: (WARM if w.corrections is None else WARM_REFINED, w) for w in self.warm if w.nfe in s.nfes}
        return [(origin, as_point(schedule)) for origin, schedule in warm.values()]

    def _proposer(self, on_refit: OnRefit | None) -> Proposer:
        s, rungs = self.settings, list(dict.fromkeys((self.ladder.screen.name, self.ladder.main.name)))
        if s.sampler not in OWN:
            sampler = stock_sampler(s.sampler, s.seed, 1, self.schedules.flat, s.population or POPULATION)
            return OptunaProposer(self.schedules, sampler, s.sampler, s.seed, self.check, rungs)
        assert s.random_trials is not None
        options = S3Options(random_trials=s.random_trials, surrogate=s.surrogate)
        if s.sampler == "evolution":
            # The published operators alone, from presets and random members.
            options = replace(options, surrogate="none", across=0.0, local=0.0)
        return S3Proposer(self.schedules, s.nfes, self.check, rungs, s.seed, options, on_refit, s.sampler)
