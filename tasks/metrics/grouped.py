"""Metrics whose parts are sums over groups of images: all of them add up, are stored, and have paired differences.

A metric derives from `GroupedMetric` and says which sums there are, and what figure follows from their totals; or from
`MeanMetric`, where each image has one value and the figure is their mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.interval import Interval, paired_sums, sums_interval
from fewstep.tasks.metrics.metric import Metric, Score, groups
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.work import CALLS, Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

# A sum: how many images.
IMAGES = "images"
TOTAL, SQUARES = "total", "squares"
Z = 1.96


class GroupedMetric(Metric):
    """Sums over groups of GROUP images, by name; `figure_of` their totals is the figure.

    `least` is the smallest figure that there is, at which intervals end.
    """

    grows: ClassVar[bool] = True
    interval: ClassVar[str] = "95%, delete-a-group jackknife over the images"
    least: ClassVar[float] = float("-inf")

    @abstractmethod
    def sums(self, worker: Worker, images: Tensor, task: Task, start: int) -> Mapping[str, float]:
        """The sums of images (N, C, H, W) in [-1, 1], which are images start, start + 1, ... of the task's noise."""

    @abstractmethod
    def figure_of(self, totals: Mapping[str, float]) -> float:
        """The figure of the totals of all sums; IMAGES is how many images they are of. EvaluationError without one."""

    def told(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Further figures of the totals, by name."""
        return {}

    def measure(self, worker: Worker, task: Task) -> Measured:
        """The sums of each group of the task's images."""
        network, parts = worker.network(parse_point(task.point)), []
        for start, images, calls in groups(worker, task, network):
            parts.append(Part(start, len(images), sums={**self.sums(worker, images, task, start), CALLS: calls}))
        return Measured(tuple(parts), network.figures)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The figure with the jackknife's interval from three groups on; mean NFE beside it."""
        names = _names(parts)
        groups = [_vector(part, names) for part in parts]
        total = np.sum(groups, axis=0)
        totals = dict(zip(names, map(float, total), strict=True))
        value = self.figure_of(totals)
        found = {**self.told(totals), "nfe": totals[CALLS] / totals[IMAGES]}
        within = sums_interval(self._statistic(names), groups, [part.count for part in parts], least=self.least)
        return Score(value, within.low, within.high, found) if within else Score(value, figures=found)

    def paired(self, first: Sequence[Part], second: Sequence[Part]) -> Interval | None:
        """The difference of the figures by the same jackknife."""
        counts = [part.count for part in first]
        if counts != [part.count for part in second]:
            raise ConfigurationError("a paired difference needs the same groups on both sides; their counts differ")
        names = _names([*first, *second])
        sides = [[_vector(part, names) for part in side] for side in (first, second)]
        return paired_sums(self._statistic(names), sides[0], sides[1], counts)

    def _statistic(self, names: Sequence[str]) -> Any:
        return lambda vector: self.figure_of(dict(zip(names, map(float, vector), strict=True)))


class MeanMetric(GroupedMetric):
    """The mean of one value an image. Where `higher` values are better, the figure is minus the mean.

    A figure that is so turned round is named `neg-...`, and the mean itself is told beside it as `quality`.
    """

    interval: ClassVar[str] = "95%, normal over the images"
    higher: ClassVar[bool] = False
    quality: ClassVar[str] = ""

    @abstractmethod
    def values(self, worker: Worker, images: Tensor, task: Task, start: int) -> Array:
        """The values (N,) of images (N, C, H, W) in [-1, 1], images start, start + 1, ... of the task's noise."""

    def sums(self, worker: Worker, images: Tensor, task: Task, start: int) -> Mapping[str, float]:
        """The sum of the values, and that of their squares. EvaluationError for values that are not N finite ones."""
        found = np.asarray(self.values(worker, images, task, start), np.float64)
        if found.shape != (len(images),) or not np.isfinite(found).all():
            what = f"{found.shape}" if found.shape != (len(images),) else "values that are not finite"
            raise EvaluationError(f"{self.figure} gives {what} for {len(images)} images: one finite number each is due")
        return {TOTAL: float(found.sum()), SQUARES: float(np.square(found).sum())}

    def figure_of(self, totals: Mapping[str, float]) -> float:
        """The mean, or minus the mean."""
        mean = totals[TOTAL] / totals[IMAGES]
        return -mean if self.higher else mean

    def told(self, totals: Mapping[str, float]) -> dict[str, float]:
        """The mean where it is the other way round."""
        return {self.quality: totals[TOTAL] / totals[IMAGES]} if self.quality else {}

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The figure with its interval, from two images on."""
        whole = super().score(parts, figures)
        n = sum(part.count for part in parts)
        if n < 2:
            return Score(whole.value, figures=whole.figures)
        total, squares = (sum(part.sums[name] for part in parts) for name in (TOTAL, SQUARES))
        half = Z * float(np.sqrt(max(0.0, squares - total * total / n) / (n - 1) / n))
        return Score(whole.value, max(self.least, whole.value - half), whole.value + half, whole.figures)


def _names(parts: Sequence[Part]) -> list[str]:
    return sorted({name for part in parts for name in part.sums} | {IMAGES})


def _vector(part: Part, names: Sequence[str]) -> Any:
    sums = {**part.sums, IMAGES: float(part.count)}
    return np.array([sums.get(name, 0.0) for name in names], np.float64)
