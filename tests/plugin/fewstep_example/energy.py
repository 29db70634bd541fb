"""A metric of two sets of images: the energy distance of their features, 2 E|x - y| - E|x - x'| - E|y - y'|.

Source: Szekely and Rizzo 2013, "Energy statistics", equation 5. Pairs of generated images are taken within groups, so
that groups add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from scipy.spatial.distance import cdist

from fewstep.tasks.metrics.grouped import IMAGES, GroupedMetric
from fewstep.tasks.metrics.metric import SampleMetric
from fewstep.tasks.work import Task


class EnergyDistance(SampleMetric, GroupedMetric):
    """Unbiased, so that it may come out below 0."""

    figure: ClassVar[str] = "energy"
    signed: ClassVar[bool] = True

    @cached_property
    def _real(self) -> float:
        y = self.setting.samples[0]
        return float(cdist(y, y).sum()) / (len(y) * (len(y) - 1))

    def sums(self, worker: Any, images: Any, task: Task, start: int) -> Mapping[str, float]:
        """Of each pair of images, and of each image and the reference's."""
        x, y = self.setting.extractor(images), self.setting.samples[0]
        pairs = float(len(x) * (len(x) - 1))
        across = float(cdist(x, y).mean(axis=1).sum())
        return {"within": float(cdist(x, x).sum()), "pairs": pairs, "across": across, "real": len(x) * self._real}

    def figure_of(self, totals: Mapping[str, float]) -> float:
        """The distance."""
        n = totals[IMAGES]
        return (2 * totals["across"] - totals["real"]) / n - totals["within"] / max(1.0, totals["pairs"])
