"""Replay runs of the published USF sampler and print the largest absolute error.

    python -m benchmarks.usf_vectors FILE

FILE is JSON: a list of cases, or an object with `cases` and the empirical statistics `ems` (l, s, b on a
uniform lambda grid from t = 1 to t = 1e-3). A case holds a Gaussian mixture whose exact noise prediction is
the denoiser, the decisions in the program's keys, the starting noise and the result, all in float64.
Exits with 1 where an error exceeds 1e-9.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._line import machine
from fewstep.search_spaces.schedule.published import read_published
from fewstep.tasks.models.noise_schedule import VariancePreserving
from fewstep.tasks.models.statistics import EmpiricalStatistics, ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

LIMIT = 1e-9
ToLambda = Callable[[float], float]


class ByLambda(VariancePreserving):
    """Variance-preserving noise from `start`; the denoiser is told lambda itself."""

    def __init__(self, start: float) -> None:
        self.lambda_start, self.lambda_end = start, 20.0

    def time(self, lambda_: float) -> float:
        """Lambda."""
        return lambda_

    def lambda_at(self, time: float) -> float:
        """Lambda."""
        return time


def to_lambda(noise_schedule: dict[str, Any]) -> ToLambda:
    """Lambda at t in (0, 1] of the continuous `linear` or the `discrete` schedule."""
    if noise_schedule["kind"] == "linear":
        b0, b1 = noise_schedule["beta_0"], noise_schedule["beta_1"]
        return lambda t: _lambda(-0.25 * t * t * (b1 - b0) - 0.5 * t * b0)
    logs = 0.5 * np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))

    def discrete(t: float) -> float:
        if t < 1e-3:
            return _lambda(float(logs[0] + (t - 1e-3) * (logs[1] - logs[0]) * 1000))
        return _lambda(float(np.interp(t, np.arange(1, 1001) / 1000, logs)))

    return discrete


def _lambda(log_alpha: float) -> float:
    return log_alpha - 0.5 * math.log(-math.expm1(2 * log_alpha))


def mixture_eps(gmm: dict[str, Any]) -> Callable[[Tensor, float, float], Tensor]:
    """E[eps | x] of an isotropic Gaussian mixture."""
    means, stds, weights = (torch.tensor(gmm[k], dtype=torch.float64) for k in ("means", "stds", "weights"))

    def eps(x: Tensor, alpha: float, sigma: float) -> Tensor:
        flat = x.reshape(len(x), 1, -1)
        variance = (alpha * stds) ** 2 + sigma**2
        difference = flat - alpha * means
        logits = weights.log() - 0.5 * (difference**2).sum(-1) / variance - 0.5 * means.shape[1] * variance.log()
        shares = torch.softmax(logits, 1)
        return (sigma * (shares[..., None] * difference / variance[:, None]).sum(1)).reshape(x.shape)

    return eps


def replay(case: dict[str, Any], ems: dict[str, Any] | None) -> float:
    """Largest absolute difference between our result and the recorded one."""
    at = to_lambda(case["noise_schedule"])
    schedule = read_published(case["decisions"], at)
    noise = ByLambda(schedule.lambdas[0])
    x, expected = (torch.tensor(case[name], dtype=torch.float64) for name in ("x_T", "x_0"))
    empirical = None
    if ems is not None:
        empirical = EmpiricalStatistics(np.linspace(at(1.0), at(1e-3), len(ems["l"])), ems["l"], ems["s"], ems["b"])
    statistics = ModelStatistics(np.full(x.shape[1:], float(case.get("average_x0", 0.0))), empirical)
    eps = mixture_eps(case["gmm"])
    tables = compile_schedule(schedule, noise, statistics=statistics)
    out = sample(tables, lambda v, lambda_: eps(v, *noise.alpha_sigma(lambda_)), x)
    return float((out - expected).abs().max())


def main() -> int:
    """Replay every case, print the line and say whether the claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, nargs="?", default=Path("tests/data/usf_vectors.json"))
    content = json.loads(parser.parse_args().file.read_text())
    cases = content if isinstance(content, list) else content["cases"]
    ems = None if isinstance(content, list) else content.get("ems")
    errors = [replay(case, ems) for case in cases]
    line = {"name": "usf_vectors", "cases": len(cases), "max_abs_error": max(errors), "conditions": machine()}
    print(json.dumps(line))
    return 0 if max(errors) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
