"""How the moments of a schedule's features move with its numbers, and the step that this asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import EvaluationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.refinement.features import Frechet

TINY = 1e-12


@dataclass(frozen=True)
class Direction:
    """One number that is tuned: entry (row, column) of `points` or `outputs`, or the shift of call `row`."""

    part: str
    row: int
    column: int

    @property
    def calls_again(self) -> bool:
        """Whether node `row` itself has to be called again."""
        return self.part == "shifts"

    def calls(self, nodes: int) -> int:
        """How many calls, the last ones, a change of it changes."""
        return nodes - 1 - self.row + self.calls_again


def directions_of(schedule: SolverSchedule) -> list[Direction]:
    """All that change something of their own: nodes are sums of the starting noise and of outputs."""
    first = int(schedule.first_call != "model")
    nodes = schedule.nodes
    found = [Direction("points", k, 0) for k in range(nodes)]
    found += [Direction("outputs", k, j) for k in range(nodes) for j in range(first, k + 1)]
    # The first call stays where the prior is.
    return found + [Direction("shifts", j, 0) for j in range(1, nodes)]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    return features.mean(0), torch.cov(features.T)


@dataclass
class LinearMoments:
    """Derivatives of mean (n, D) and covariance (n, D, D) by n directions, and E|change of features|^2 as a form."""

    mean: Tensor
    covariance: Tensor
    metric: Tensor

    def at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """What mean and covariance are told to change by."""
        return step @ self.mean, torch.einsum("n,nij->ij", step, self.covariance)

    def correct(self, step: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Broyden's update: as little as makes the step's moments come out right."""
        told_mean, told_covariance = self.at(step)
        share = step / step.square().sum()
        self.mean = self.mean + share[:, None] * (mean - told_mean)
        self.covariance = self.covariance + share[:, None, None] * (covariance - told_covariance)

    def step(self, features: Tensor, frechet: Frechet, damping: float) -> Tensor:
        """The step (n,) from these features that makes distance and damped movement least together.

        EvaluationError where the derivatives are not finite.
        """
        mean, covariance = moments(features)
        # In units in which each number moves images alike.
        scale = self.metric.diagonal().clamp_min(TINY).rsqrt()
        z = torch.zeros_like(scale, requires_grad=True)
        optimizer = torch.optim.LBFGS([z], max_iter=80, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            step = scale * z
            moved = self.at(step)
            loss = frechet.of(mean + moved[0], covariance + moved[1]) + damping * (step @ self.metric @ step)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        step = (scale * z).detach()
        if not bool(torch.isfinite(step).all()):
            raise EvaluationError("derivatives of moments are not finite")
        return step
