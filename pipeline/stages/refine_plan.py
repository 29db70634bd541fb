"""How a search tunes its best: a plan as large as the calls that are kept for it."""

from __future__ import annotations

import math

from fewstep.pipeline.settings import SearchSettings
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MOST_LOOKED_AT, PROBED, MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan

LEAST_ITERATIONS, MOST_ITERATIONS = 50, 600
# Few images are soon fitted by heart: a descent on moments sees as many as its calls sample so often, first of these,
# and more where its calls sample them more often.
ENOUGH_TUNED_ON, SAMPLINGS = 2000, 2.5
MOST_TUNED_ON, MORE_SAMPLINGS = 4000, 10
# Calls that sample so many images last for sweeps that reach the first rows, with derivatives of few images and so many
# calls for each that is tuned on. Fewer calls are for the last rows alone, on as many as there can be.
DEEP, EACH = 4500, 22


def refine_plan(s: SearchSettings, nfe: int, teacher_nfe: int, most: int) -> RefinePlan | MomentPlan:
    """As much as `most` calls pay for; a descent by gradient has at least LEAST_ITERATIONS."""
    if s.refine_to == "moments":
        samplings = most / nfe
        few = min(ENOUGH_TUNED_ON, samplings / SAMPLINGS, most / EACH if samplings >= DEEP else math.inf)
        many = min(MOST_TUNED_ON, samplings / MORE_SAMPLINGS)
        images = int(max(few, many))
        whole = AT_ONCE if images < MOST_LOOKED_AT else MOST_LOOKED_AT
        images = max(whole, images // whole * whole)
        probed = PROBED if samplings >= DEEP else images
        return MomentPlan(images=images, look=whole, probed=probed, limit=max(1, most), seed=s.seed)
    if s.refine_to == "reference":
        # Larger batches and small steps: the gradient of a distance between few samples is a noisy one.
        base = RefinePlan(distance="reference", batch=64, validation=512, speed=0.05, seed=s.seed)
    else:
        base = RefinePlan(distance=s.refine_to, images=128, validation=64, check_every=25, seed=s.seed)
    counts = range(LEAST_ITERATIONS, MOST_ITERATIONS + 1, 25)
    plans = [base.model_copy(update={"iterations": n}) for n in counts]
    return next((p for p in reversed(plans) if p.calls(nfe, teacher_nfe) <= most), plans[0])
