"""Times by dynamic programming over the shape of the model's own trajectories (GITS, 2405.11326, section 4).

In the frame y = x / alpha, s = e^-lambda, the sampling ODE is dy/ds = eps, and a trajectory stays close to the line
from its start to its end. One fine Euler trajectory gives, for every pair of its points, what one long Euler step
would do: how much further from that line it lands than the trajectory itself is there. The times of n steps are the
path that adds up least of it, later steps weighing `weight` times more each.

Shapes: points and eps (N + 1, B, ...), costs (N + 1, N + 1) with inf where a step would not lead forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.refinement.execute import Cost, counted
from fewstep.tasks.sampling.grids import ratio_grid
from fewstep.tasks.sampling.noise import starting_noise

Array = npt.NDArray[np.float64]
WEIGHTS = (1.0, 1.15, 1.3)
POINTS = 61
SAMPLES = 256
BATCH = 64
FINE_GRID = "karras"


def jump_costs(points: Tensor, slopes: Tensor, times: Array) -> Array:
    """Mean extra distance from the line of a step from i to j, over the batch.

    `points` y (N + 1, B, D), `slopes` eps (N, B, D), `times` s falling (N + 1,).
    """
    first, last = points[0], points[-1]
    along = torch.nn.functional.normalize(first - last, dim=-1)

    def deviation(y: Tensor) -> Tensor:
        off = y - last
        across: Tensor = off - (off * along).sum(-1, keepdim=True) * along
        return across.square().sum(-1).sqrt()

    own = [deviation(y) for y in points]
    n = len(times)
    costs = np.full((n, n), np.inf)
    for i in range(n - 1):
        for j in range(i + 1, n):
            landed = points[i] + float(times[j] - times[i]) * slopes[i]
            costs[i, j] = float((deviation(landed) - own[j]).mean())
    return costs


def cheapest_path(costs: Array, steps: int, weight: float) -> tuple[int, ...]:
    """Indices 0 = i_0 < i_1 < ... < i_steps = N that minimise sum_k weight^k costs[i_k, i_k+1].

    Exact, by dynamic programming from the end. ConfigurationError where there are fewer points than steps.
    """
    n = len(costs)
    if not 1 <= steps < n:
        raise ConfigurationError(f"{steps} steps over {n} points: give 1 to {n - 1}")
    left = np.full(n, np.inf)
    left[-1] = 0.0
    choices = []
    for _ in range(steps):
        totals = costs + weight * left[None, :]
        choices.append(totals.argmin(1))
        left = totals.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return tuple(path)


class Trajectories:
    """What steps between the points of fine Euler trajectories cost; `calls` denoiser calls went into it.

    With a `path` they are kept there, and measured once.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        seed: int,
        samples: int = SAMPLES,
        points: int = POINTS,
        path: Path | None = None,
    ) -> None:
        self.lambdas = ratio_grid(FINE_GRID, denoiser.files.noise, points - 1)
        kept = Kept(path)
        if "costs" not in kept:
            costs, calls = self._measured(denoiser, seed, samples)
            kept.keep("costs", {"table": torch.from_numpy(costs), "calls": torch.tensor(calls)})
        self.costs: Array = kept["costs"]["table"].numpy()
        self.calls = int(kept["costs"]["calls"])

    def _measured(self, denoiser: Denoiser, seed: int, samples: int) -> tuple[Array, int]:
        files, cost, parts = denoiser.files, Cost(), []
        for start in range(0, samples, BATCH):
            count = min(BATCH, samples - start)
            call = counted(denoiser.on(range(start, start + count)), cost)
            parts.append(self._costs(call, denoiser, starting_noise(seed, start, count, files.shape, denoiser.device)))
        weights = [min(BATCH, samples - start) for start in range(0, samples, BATCH)]
        return np.average(parts, axis=0, weights=weights), cost.calls

    @torch.no_grad()
    def _costs(self, call: Callable[[Tensor, float | Tensor], Tensor], denoiser: Denoiser, noise: Tensor) -> Array:
        files, times = denoiser.files, np.exp(-np.array(self.lambdas))
        alpha, _ = files.noise.alpha_sigma(self.lambdas[0])
        y = noise.double() * files.noise.prior_scale(self.lambdas[0]) / alpha
        points, slopes = [y], []
        for i, lambda_ in enumerate(self.lambdas[:-1]):
            alpha, _ = files.noise.alpha_sigma(lambda_)
            x = (alpha * y).float()
            output = call(x * files.noise.input_scale(lambda_), files.noise.time(lambda_))
            means = files.noise.output_map(files.prediction_type, lambda_)
            slopes.append((means.eps_x * x + means.eps_o * output).double())
            y = y + float(times[i + 1] - times[i]) * slopes[-1]
            points.append(y)
        return jump_costs(torch.stack(points).flatten(2), torch.stack(slopes).flatten(2), times)

    def grids(self, calls: int, start: float | None = None) -> dict[str, tuple[float, ...]]:
        """Times for that many calls, by name: `gits-W` ends at the last trained time, `gits-W-zero` at sigma = 0.

        With a `start`, half a log-SNR, a step from the first time to the point nearest to it comes before them, for an
        analytic first call: its name is told after `gits-W`.

        The second calls at the last trained time before it jumps, and so has one step less to place. W are WEIGHTS:
        the published one and its neighbours, since how much it matters differs with the model.
        """
        found = {}
        for weight in WEIGHTS:
            name = f"gits-{weight:g}" + ("" if start is None else f"-from-{start:.3g}")
            found[name] = self._times(calls, weight, start)
            if calls > 1:
                found[f"{name}-zero"] = (*self._times(calls - 1, weight, start), math.inf)
        return found

    def _times(self, steps: int, weight: float, start: float | None) -> tuple[float, ...]:
        first = 0 if start is None else max(1, int(np.abs(np.array(self.lambdas) - start).argmin()))
        path = [first + i for i in cheapest_path(self.costs[first:, first:], steps, weight)]
        return tuple(self.lambdas[i] for i in ([0] if first else []) + path)
