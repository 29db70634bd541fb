"""The ladder of ever dearer evaluations that a candidate climbs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fewstep.pipeline.settings import SearchSettings


@dataclass(frozen=True)
class Rung:
    """One kind of evaluation on how many images: `distance` to a teacher, `moments` for Frechet's, `edit`, `refine`.

    `plan` (JSON) says what a refinement does.
    """

    name: str
    kind: Literal["distance", "moments", "edit", "refine"]
    images: int
    seed: int
    plan: str = ""

    @property
    def metric(self) -> str:
        """Name of the figure that decides at this rung."""
        names = {"distance": "teacher-distance", "moments": "frechet", "edit": "imbalance", "refine": "refinement-loss"}
        return names[self.kind]


def ladder(settings: SearchSettings) -> tuple[Rung, Rung, Rung, Rung]:
    """Screen, judge, finals and report. The first three share their noise, the last never does.

    Without a screen, the judge stands in its place.
    """
    seed = settings.noise_seed
    judge = Rung("frechet", "moments", settings.frechet_images, seed)
    screens = {
        "distance": Rung("distance", "distance", settings.distance_images, seed),
        "frechet": Rung("look", "moments", settings.look_images, seed),
        "none": judge,
    }
    return (
        screens[settings.screen],
        judge,
        Rung("finals", "moments", settings.finalist_images, seed),
        Rung("report", "moments", settings.report_images, settings.report_seed),
    )


def promoted(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a value is in the best share `keep` of all values seen at its rung, itself among them.

    The rule of asynchronous successive halving (1810.05934): nobody waits for a rung to fill.
    """
    rank = sum(1 for other in others if other < value)
    return rank < max(1, math.ceil(keep * len(others)))
