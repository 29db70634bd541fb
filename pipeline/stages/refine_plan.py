"""How a search tunes its best: a plan as large as the calls that are kept for it."""

from __future__ import annotations

from fewstep.pipeline.settings import SearchSettings
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MOST_LOOKED_AT, MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan

LEAST_ITERATIONS, MOST_ITERATIONS = 50, 600
# Few images are soon fitted by heart, many leave no calls for steps: a descent on moments sees as many as its calls
# sample so often and pay so many calls each for, first of these, and more where its calls sample them more often.
ENOUGH_TUNED_ON, SAMPLINGS, EACH = 2000, 2.5, 22
MOST_TUNED_ON, MORE_SAMPLINGS = 4000, 10


def refine_plan(s: SearchSettings, nfe: int, teacher_nfe: int, most: int) -> RefinePlan | MomentPlan:
    """As much as `most` calls pay for; a descent by gradient has at least LEAST_ITERATIONS."""
    if s.refine_to == "moments":
        few = min(ENOUGH_TUNED_ON, most / max(SAMPLINGS * nfe, EACH))
        many = min(MOST_TUNED_ON, most / nfe / MORE_SAMPLINGS)
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
