"""Frechet distance on many images, guessed from what few of them change: a control variate.

    mean = mean_B + (m - b),   C = C_B + s (S - T)

A control, another schedule of the same denoiser calls, was measured on B images. m and S are the candidate's mean and
covariance of the first N of the same noise, b and T the control's. What the noise does to both cancels, so that some 32
images order schedules far better than their own distance does, most of which is chance. What is left of chance in
S - T, of rank 2 N at most, would add to every distance the more, the farther a candidate is from the control:

    s = 1 - sum_ij var (S - T)_ij / |S - T|^2, at least 0

shrinks it to no change by as much as its own images contradict one another.
Source: the control variate of Monte Carlo integration (Glasserman 2003, section 4.1), for each moment; the shrinkage of
Ledoit and Wolf (2004, section 3.2) for the difference of two covariances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.linalg

from fewstep.errors import EvaluationError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.metric import FeatureMetric, Score, groups
from fewstep.tasks.metrics.moments import Array, merge_all
from fewstep.tasks.work import FEATURES, Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker


class PairedFrechet(FeatureMetric):
    """Parts are features (N, D) of groups of images; `score` is given the control's parts before the candidate's."""

    figure: ClassVar[str] = "paired-frechet"
    grows: ClassVar[bool] = True
    standalone: ClassVar[bool] = False
    controlled: ClassVar[str] = "frechet"

    def measure(self, worker: Worker, task: Task) -> Measured:
        """Features of each group of the task's images."""
        network, parts = worker.network(parse_point(task.point)), []
        for start, images, _ in groups(worker, task, network):
            features = np.asarray(self.setting.extractor(images), np.float64)
            if not np.isfinite(features).all():
                raise EvaluationError("features are not finite: the sampled images diverged")
            parts.append(Part(start, len(images), values={FEATURES: features}))
        return Measured(tuple(parts), network.figures)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The guess, of moments of the control's B images, features of its N, and those of the candidate's N."""
        whole = merge_all([part.moments for part in parts if part.moments is not None])
        few = [part.values[FEATURES] for part in parts if part.moments is None]
        control, own = (np.concatenate(half) for half in (few[: len(few) // 2], few[len(few) // 2 :]))
        mean = whole.mean + own.mean(0) - control.mean(0)
        return Score(self.frechet.distance(mean, _nearest(whole.covariance + shrunk_change(own, control))))


def shrunk_change(own: Array, control: Array) -> Array:
    """s (S - T) (D, D) of paired features (N, D), N at least 2."""
    x, y = own - own.mean(0), control - control.mean(0)
    count = len(x)
    change: Array = (x.T @ x - y.T @ y) / (count - 1)
    total = float(np.square(change).sum())
    # |x x^T - y y^T|^2 for each image.
    each = np.square(np.square(x).sum(1)) + np.square(np.square(y).sum(1)) - 2 * np.square((x * y).sum(1))
    chance = (each.sum() - (count - 1) ** 2 / count * total) / (count * (count - 1))
    return change * (max(0.0, 1 - chance / total) if total > 0 else 0.0)


def _nearest(symmetric: Array) -> Array:
    """The nearest covariance (D, D): a difference of covariances may have eigenvalues below zero."""
    w, V = scipy.linalg.eigh(symmetric)
    root = V * np.sqrt(np.clip(w, 0.0, None))
    product: Array = root @ root.T
    return product
