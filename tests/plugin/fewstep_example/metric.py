"""A metric: the kernel distance (KID, 1801.01401), unbiased at any number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from fewstep.search_spaces.point import parse_point
from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.metrics.metric import FeatureMetric, Score
from fewstep.tasks.work import GROUP, Measured, Part, Task

REFERENCE_IMAGES = 500


class KernelDistance(FeatureMetric):
    """Parts are the distances of groups of GROUP images, whose mean is the figure."""

    figure: ClassVar[str] = "kid"
    grows: ClassVar[bool] = True
    interval: ClassVar[str] = "95%, normal over groups of images"

    @cached_property
    def _real(self) -> Any:
        """Features (N, D) of real images; a metric of one's own domain brings its own."""
        return self.setting.extractor(torch.from_numpy(load_dataset("digits").images[:REFERENCE_IMAGES]))

    def measure(self, worker: Any, task: Task) -> Measured:
        """The distance of each group."""
        point, parts = parse_point(task.point), []
        network = worker.network(point)
        for start in range(task.start, task.start + task.count, GROUP):
            count = min(GROUP, task.start + task.count - start)
            made = worker.extractor(worker.render(point, task.seed, start, count, network.denoiser))
            parts.append(Part(start, count, sums={"kid": count * _kid(made, self._real)}))
        return Measured(tuple(parts), network.figures)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """Their mean, with an interval from three groups on."""
        return Score(*_mean(_groups(parts))) if len(parts) > 2 else Score(float(_groups(parts).mean()))

    def paired(self, first: Sequence[Part], second: Sequence[Part]) -> Interval | None:
        """The mean of the groups' differences."""
        return _mean(_groups(first) - _groups(second)) if len(first) > 2 else None


def _groups(parts: Sequence[Part]) -> Any:
    return np.array([part.sums["kid"] / part.count for part in parts])


def _mean(values: Any) -> Interval:
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)


def _kid(x: Any, y: Any) -> float:
    """Unbiased estimate with the cubic kernel of features (N, D), (M, D)."""
    dim, n, m = x.shape[1], len(x), len(y)
    xx, yy, xy = ((a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())
