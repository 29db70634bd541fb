"""What is predicted of children from derivatives of features by an elite's numbers, in every way that was tried.

Shapes: features (N, D) of the elite, changes (n, N, D) of them by a unit of each direction, thetas (B, n).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.paired import shrunk_change
from fewstep.tasks.refinement.execute import Cost
from fewstep.tasks.refinement.features import Judge
from fewstep.tasks.refinement.moment_descent import MomentDescent
from fewstep.tasks.refinement.moment_model import LinearMoments, moments
from fewstep.tasks.refinement.moment_plan import AT_ONCE, MomentPlan

if TYPE_CHECKING:
    from benchmarks.siblings.measure import Sampled

Array = npt.NDArray[np.float64]
# Of a Frechet distance a unit of E|change of features|^2, where a prediction is damped; parts of the images by which
# it doubts itself, and how many standard errors a bold choice adds.
DAMPING, PARTS, BOLD = 0.5, 5, 1.0
FURTHEST = 1e3


class LinearFeatures:
    """Features of an elite on images of a seed, and how they change: `calls` is what that took."""

    def __init__(self, sampled: Sampled, elite: SolverSchedule, images: int, seed: int) -> None:
        worker = sampled.worker
        judge = Judge(worker.setting, worker.exact, worker.decode)
        plan, cost = MomentPlan(images=images, look=AT_ONCE, limit=1, seed=seed), Cost()
        descent = MomentDescent(elite, worker.exact, plan, judge, cost=cost)
        known = descent.begin()
        self.frechet, self.value, self.features = judge.frechet, known.value, known.features
        self.changes = torch.stack([descent.change(known, i) for i in range(len(descent.directions))])
        self.calls = cost.calls
        self._told: dict[int, LinearMoments] = {}

    def _linear(self, images: int) -> LinearMoments:
        """Derivatives of moments from the first images."""
        if images not in self._told:
            self._told[images] = self._of(torch.arange(images))
        return self._told[images]

    def _of(self, rows: Tensor) -> LinearMoments:
        few, changes = self.features[rows], self.changes[:, rows]
        a, b = few - few.mean(0), changes - changes.mean(1, keepdim=True)
        cross = torch.einsum("nd,mne->mde", a, b) / (len(rows) - 1)
        flat = changes.flatten(1)
        return LinearMoments(changes.mean(1), cross + cross.mT, flat @ flat.T / len(rows))

    def _distance(self, mean: Tensor, covariance: Tensor) -> float:
        value = float(self.frechet.of(mean, covariance))
        return value if np.isfinite(value) else FURTHEST

    def linear(self, told: LinearMoments, theta: Array) -> float:
        """The distance of moments that move linearly."""
        mean, covariance = moments(self.features)
        moved = told.at(torch.from_numpy(theta))
        return self._distance(mean + moved[0], covariance + moved[1])

    def quadratic(self, theta: Array, images: int) -> tuple[Tensor, Tensor]:
        """Moments of features that move linearly: the covariance has the square of the move too."""
        mean, covariance = moments(self.features)
        before = self.features[:images]
        after = before + torch.einsum("m,mnd->nd", torch.from_numpy(theta), self.changes[:, :images])
        (m0, c0), (m1, c1) = moments(before), moments(after)
        return mean + m1 - m0, covariance + c1 - c0

    def predictions(self, thetas: Array, images: Sequence[int]) -> dict[str, Array]:
        """By name of a ranking and number of images (B,)."""
        found: dict[str, Array] = {}
        for n in dict.fromkeys(images):
            told = self._linear(n)
            found[f"lin_{n}"] = np.array([self.linear(told, t) for t in thetas])
            found[f"quad_{n}"] = np.array([self._distance(*self.quadratic(t, n)) for t in thetas])
        last = images[-1]
        metric = self._linear(last).metric.numpy()
        found["size"] = np.einsum("bi,ij,bj->b", thetas, metric, thetas)
        found[f"damped_{last}"] = found[f"lin_{last}"] + DAMPING * self.value * found["size"]
        parts = [self._of(torch.tensor([i for i in range(last) if i % PARTS != p])) for p in range(PARTS)]
        apart = np.array([[self.linear(told, t) for t in thetas] for told in parts])
        found["error"] = np.sqrt((PARTS - 1) / PARTS * np.square(apart - apart.mean(0)).sum(0))
        found[f"bold_{last}"] = found[f"lin_{last}"] - BOLD * found["error"]
        return found

    def corrected(self, thetas: Array, told: Mapping[int, Array]) -> Array:
        """The linear prediction after Broyden's updates by the features of some children, in their order."""
        base = self._linear(len(self.features))
        model = LinearMoments(base.mean, base.covariance, base.metric)
        for i, features in told.items():
            few = torch.from_numpy(features)
            (m0, c0), (m1, c1) = moments(self.features[: len(few)]), moments(few)
            model.correct(torch.from_numpy(thetas[i]), m1 - m0, c1 - c0)
        return np.array([self.linear(model, t) for t in thetas])

    def hybrid(self, theta: Array, own: Array, images: int) -> float:
        """Moments that are told for a child, and what its few images (N, D) have other than what is told for them."""
        mean, covariance = self.quadratic(theta, images)
        few = self.features[: len(own)] + torch.einsum(
            "m,mnd->nd", torch.from_numpy(theta), self.changes[:, : len(own)]
        )
        more = covariance.numpy() + shrunk_change(own, few.numpy())
        w, V = np.linalg.eigh(more)
        return self._distance(
            mean + torch.from_numpy(own.mean(0)) - few.mean(0), torch.from_numpy((V * w.clip(0)) @ V.T)
        )
