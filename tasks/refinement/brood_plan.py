"""What a ranking of an elite's children is asked to do."""

from __future__ import annotations

from pydantic import ConfigDict, NonNegativeInt, PositiveInt

from fewstep.search_spaces.checked import Checked
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.brood import brood
from fewstep.search_spaces.schedule.genome import Genome, to_genome
from fewstep.search_spaces.schedule.solver_space import Extras
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.refinement.moment_model import directions_of
from fewstep.tasks.refinement.moment_plan import AT_ONCE


class BroodPlan(Checked):
    """Derivatives are measured on the first `derived` of `images` of the noise of `seed`; the best `kept` of `children`
    come back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: PositiveInt = 2 * AT_ONCE
    derived: PositiveInt = AT_ONCE
    children: PositiveInt = 500
    kept: PositiveInt = 32
    seed: NonNegativeInt = 0
    decisions: tuple[str, ...] = ()
    guidance_range: tuple[float, float] | None = None

    def calls(self, elite: SolverSchedule) -> int:
        """Denoiser calls: the elite's own, and those behind every number that is changed."""
        return self.images * elite.nfe + self.derived * sum(d.calls(elite.nodes) for d in directions_of(elite))

    def least(self, nfe: int) -> int:
        """The same of an elite whose every node is called, which has the fewest numbers."""
        again = nfe * (nfe - 1) + (nfe - 1) * nfe * (nfe + 1) // 6
        return self.images * nfe + self.derived * again

    def brood(self, elite: SolverSchedule, noise: NoiseSchedule, skips: int = 0) -> list[Genome]:
        """The children, in their order; ScheduleError where the elite is no member of the space."""
        extras = Extras(frozenset(self.decisions), skips, self.guidance_range)
        space = ScheduleSpace(noise.lambda_start, noise.lambda_end, (elite.nfe,), extras)
        return brood(space, to_genome(elite), f"{self.seed}/{elite.hash}", self.children)
