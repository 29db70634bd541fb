"""Squared maximum mean discrepancy of features to those of the reference's images, by two kernels.

    MMD^2 = mean k(x_i, x_j), i != j  -  2 mean k(x_i, y_j)  +  mean k(y_i, y_j), i != j

x are generated images (N, D) and y the reference's (M, D). Pairs of generated images are taken within groups of GROUP,
so that groups add up. The estimate is unbiased for any N and M, and may come out below 0.

KID: k = (x.y / D + 1)^3 (Binkowski et al. 2018, section 4; the published figure is a mean over subsets in the same
way). CMMD: k = 1000 exp(-|x - y|^2 / (2 10^2)) of features of unit length, made for CLIP's (Jayasumana et al. 2024,
section 4; the published program keeps the pairs i = j, which adds a bias of about 1000 (1/N + 1/M) times what a pair
differs by).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.errors import DataError, EvaluationError
from fewstep.tasks.metrics.grouped import IMAGES, GroupedMetric
from fewstep.tasks.metrics.metric import SampleMetric
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.work import Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

# Names of sums: k of pairs of generated images, how many pairs, k to the reference's mean, k of the reference's pairs.
WITHIN, PAIRS, ACROSS, REAL = "within", "pairs", "across", "real"
BLOCK = 1000


class KernelDistance(SampleMetric, GroupedMetric):
    """Base of both: a kernel, and what is done to features before."""

    signed: ClassVar[bool] = True

    @abstractmethod
    def kernel(self, x: Array, y: Array) -> Array:
        """k (N, M) of features (N, D) and (M, D)."""

    def ready(self, features: Array) -> Array:
        """Features as the kernel takes them."""
        return features

    def check(self) -> None:
        """The reference has images enough for pairs."""
        super().check()
        if len(self.setting.samples[0]) < 2:
            raise DataError("the reference holds fewer than 2 images: give more")

    @cached_property
    def _real(self) -> Array:
        return self.ready(self.setting.samples[0])

    @cached_property
    def _within_real(self) -> float:
        y, total = self._real, 0.0
        for start in range(0, len(y), BLOCK):
            block = y[start : start + BLOCK]
            k = self.kernel(block, y)
            total += float(k.sum() - k[np.arange(len(block)), start + np.arange(len(block))].sum())
        return total / (len(y) * (len(y) - 1))

    def sums(self, worker: Worker, images: Tensor, task: Task, start: int) -> Mapping[str, float]:
        """See the names above."""
        x = self.ready(self.setting.extractor(images))
        k, n = self.kernel(x, x), len(x)
        across = sum(float(self.kernel(x, self._real[i : i + BLOCK]).sum()) for i in range(0, len(self._real), BLOCK))
        return {
            WITHIN: float(k.sum() - np.trace(k)),
            PAIRS: float(n * (n - 1)),
            ACROSS: across / len(self._real),
            REAL: n * self._within_real,
        }

    def figure_of(self, totals: Mapping[str, float]) -> float:
        """The estimate; EvaluationError where no group has two images."""
        if totals[PAIRS] <= 0:
            raise EvaluationError(f"{self.figure} needs at least 2 images; got 1: evaluate more images")
        n = totals[IMAGES]
        return totals[WITHIN] / totals[PAIRS] - 2 * totals[ACROSS] / n + totals[REAL] / n


class KID(KernelDistance):
    """The polynomial kernel of degree 3."""

    figure: ClassVar[str] = "kid"

    def kernel(self, x: Array, y: Array) -> Array:
        """See the module's docstring."""
        found: Array = (x @ y.T / x.shape[1] + 1.0) ** 3
        return found


class CMMD(KernelDistance):
    """The Gaussian kernel of the published width and scale."""

    figure: ClassVar[str] = "cmmd"
    sigma: ClassVar[float] = 10.0
    scale: ClassVar[float] = 1000.0

    def ready(self, features: Array) -> Array:
        """Of unit length."""
        found: Array = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return found

    def kernel(self, x: Array, y: Array) -> Array:
        """See the module's docstring; of unit features |x - y|^2 is 2 - 2 x.y but for those of length 0."""
        square = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * (x @ y.T)
        found: Array = self.scale * np.exp(-np.maximum(square, 0.0) / (2.0 * self.sigma**2))
        return found
