"""How a search tunes its best: a plan as large as the calls that are kept for it."""

from __future__ import annotations

from fewstep.pipeline.settings import SearchSettings
from fewstep.tasks.refinement.moment_plan import AT_ONCE, FIRST_REACH, MOST_LOOKED_AT, MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan

LEAST_ITERATIONS, MOST_ITERATIONS = 50, 600
# Few images are soon fitted by heart: a descent on moments sees as many as this share of its calls samples, and tries
# steps of a first sweep on, and more where its calls sample them so often.
ENOUGH_TUNED_ON, SHARE = 2000, 0.7
MOST_TUNED_ON, MORE_SAMPLINGS = 4000, 10


def refine_plan(s: SearchSettings, nfe: int, teacher_nfe: int, most: int) -> RefinePlan | MomentPlan:
    """As much as `most` calls pay for; a descent by gradient has at least LEAST_ITERATIONS."""
    if s.refine_to == "moments":
        swept = nfe + MomentPlan().tries * sum(range(1, FIRST_REACH + 1))
        few, many = min(ENOUGH_TUNED_ON, SHARE * most / swept), min(MOST_TUNED_ON, most / nfe / MORE_SAMPLINGS)
        images = int(max(few, many))
        whole = AT_ONCE if images < MOST_LOOKED_AT else MOST_LOOKED_AT
        images = max(whole, images // whole * whole)
        return MomentPlan(images=images, look=whole, limit=max(1, most), seed=s.seed)
    if s.refine_to == "reference":
        # Larger batches and small steps: the gradient of a distance between few samples is a noisy one.
        base = RefinePlan(distance="reference", batch=64, validation=512, speed=0.05, seed=s.seed)
    else:
        base = RefinePlan(distance=s.refine_to, images=128, validation=64, check_every=25, seed=s.seed)
    counts = range(LEAST_ITERATIONS, MOST_ITERATIONS + 1, 25)
    plans = [base.model_copy(update={"iterations": n}) for n in counts]
    return next((p for p in reversed(plans) if p.calls(nfe, teacher_nfe) <= most), plans[0])
