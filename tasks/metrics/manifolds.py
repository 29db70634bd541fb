"""Improved precision and recall: how much of what is made looks real, and how much of what is real is made.

A set's manifold is the union of balls around its features, each as large as the distance to the third nearest other one
of the set. Precision is the share of generated images within the reference's manifold; recall is the share of the
reference's images within the manifold of the generated ones. As figures, of which less is better: 1 - precision and
1 - recall.

Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models", equations 1
and 2, with k = 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.errors import DataError, EvaluationError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.grouped import IMAGES, GroupedMetric
from fewstep.tasks.metrics.interval import share_interval
from fewstep.tasks.metrics.metric import SampleMetric, Score
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.work import CALLS, GROUP, Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

K = 3
BLOCK = 1000
INSIDE, REAL = "inside", "real"


def squared_distances(x: Array, y: Array) -> Array:
    """(N, M) of features (N, D) and (M, D)."""
    found: Array = np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * (x @ y.T), 0.0)
    return found


def squared_radii(features: Array, k: int = K) -> Array:
    """(N,): squared distance of each to its k-th nearest other one. N must be above k."""
    found = []
    for start in range(0, len(features), BLOCK):
        block = squared_distances(features[start : start + BLOCK], features)
        own = np.arange(len(block))
        block[own, start + own] = np.inf
        found.append(np.partition(block, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def inside(features: Array, others: Array, radii: Array) -> int:
    """How many of features (N, D) lie in a ball around `others` (M, D), of squared radii (M,)."""
    blocks = (features[start : start + BLOCK] for start in range(0, len(features), BLOCK))
    return sum(int((squared_distances(block, others) <= radii).any(axis=1).sum()) for block in blocks)


class _Manifolds(SampleMetric):
    """What both need of the reference."""

    def check(self) -> None:
        """The reference has images enough for balls."""
        super().check()
        if len(self.setting.samples[0]) <= K:
            raise DataError(
                f"the reference holds {len(self.setting.samples[0])} images: {self.figure} needs more than {K}"
            )


class Precision(_Manifolds, GroupedMetric):
    """1 - precision; the interval is Wilson's for a share."""

    figure: ClassVar[str] = "1-precision"
    interval: ClassVar[str] = "95%, Wilson's for a share"

    @cached_property
    def _radii(self) -> Array:
        return squared_radii(self.setting.samples[0])

    def sums(self, worker: Worker, images: Tensor, task: Task, start: int) -> Mapping[str, float]:
        """How many look real."""
        return {INSIDE: float(inside(self.setting.extractor(images), self.setting.samples[0], self._radii))}

    def figure_of(self, totals: Mapping[str, float]) -> float:
        """The share that does not."""
        return 1 - totals[INSIDE] / totals[IMAGES]

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The figure with Wilson's interval."""
        count = round(sum(part.sums[INSIDE] for part in parts))
        return _share(count, sum(part.count for part in parts), "precision", super().score(parts, figures).figures)


class Recall(_Manifolds):
    """1 - recall. It is of all images together: nothing of fewer images is kept, and there is no paired difference."""

    figure: ClassVar[str] = "1-recall"
    interval: ClassVar[str] = "95%, Wilson's for a share of the reference's images"

    def measure(self, worker: Worker, task: Task) -> Measured:
        """How many of the reference's images are covered. EvaluationError for too few images to make balls of."""
        if task.count <= K:
            raise EvaluationError(f"{self.figure} needs more than {K} images; got {task.count}: evaluate more images")
        point, found, end = parse_point(task.point), [], task.start + task.count
        network = worker.network(point)
        before = network.denoiser.calls
        for start in range(task.start, end, GROUP):
            count = min(GROUP, end - start)
            found.append(self.setting.extractor(worker.render(point, task.seed, start, count, network.denoiser)))
        made, real = np.concatenate(found), self.setting.samples[0]
        sums = {
            INSIDE: float(inside(real, made, squared_radii(made))),
            REAL: float(len(real)),
            CALLS: float(network.denoiser.calls - before),
        }
        return Measured((Part(task.start, task.count, sums=sums),), network.figures)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The figure with Wilson's interval over the reference's images."""
        (part,) = parts
        nfe = {"nfe": part.sums[CALLS] / part.count}
        return _share(round(part.sums[INSIDE]), round(part.sums[REAL]), "recall", nfe)


def _share(count: int, of: int, name: str, figures: Mapping[str, float]) -> Score:
    share = share_interval(count, of)
    return Score(1 - share.value, 1 - share.high, 1 - share.low, {name: share.value, **figures})
