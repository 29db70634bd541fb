"""Statistics of one model that some schedules need: its mean training image, and DPM-Solver-v3's l, s and b.

Shapes: mean (C, H, W); l, s, b (G, C, H, W) on a uniform grid of G rising lambdas. Source: "DPM-Solver-v3"
(2310.13268), and USF's program, which reads them at the nearest grid point.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fewstep.errors import DataError, ScheduleError

Array = npt.NDArray[np.float64]


class EmpiricalStatistics:
    """l, s, b on a uniform grid of lambdas, with the integrals that a step needs (trapezoids from the grid's start)."""

    def __init__(self, lambdas: npt.ArrayLike, l: npt.ArrayLike, s: npt.ArrayLike, b: npt.ArrayLike) -> None:
        self.lambdas = np.asarray(lambdas, np.float64)
        self.l, self.s, self.b = (np.asarray(v, np.float64) for v in (l, s, b))
        gaps = np.diff(self.lambdas)
        if self.lambdas.ndim != 1 or len(self.lambdas) < 2 or not np.all(gaps > 0) or np.ptp(gaps) > 1e-6 * gaps.max():
            raise DataError("the lambdas of empirical statistics must be a uniform rising grid of at least 2")
        if {v.shape for v in (self.l, self.s, self.b)} != {(len(self.lambdas), *self.l.shape[1:])}:
            raise DataError(f"l, s and b must have one map for each of the {len(self.lambdas)} lambdas, of one shape")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.l.shape[1:])

    def nearest(self, lambda_: float) -> int:
        """Index of the nearest grid point; ScheduleError where there is none within half a gap."""
        gap = (self.lambdas[-1] - self.lambdas[0]) / (len(self.lambdas) - 1)
        if not -0.5 * gap - 1e-9 <= lambda_ - self.lambdas[0] <= self.lambdas[-1] - self.lambdas[0] + 0.5 * gap + 1e-9:
            raise ScheduleError(
                f"lambda = {lambda_:.6g} is outside the model's statistics, which reach from "
                f"{self.lambdas[0]:.6g} to {self.lambdas[-1]:.6g}"
            )
        return int(np.argmin(np.abs(self.lambdas - lambda_)))

    def _integral(self, values: Array) -> Array:
        gap = (self.lambdas[-1] - self.lambdas[0]) / (len(self.lambdas) - 1)
        out = np.zeros_like(values)
        np.cumsum(0.5 * gap * (values[1:] + values[:-1]), axis=0, out=out[1:])
        return out

    @cached_property
    def L(self) -> Array:
        """Integral of l."""
        return self._integral(self.l)

    @cached_property
    def S(self) -> Array:
        """Integral of s."""
        return self._integral(self.s)

    @cached_property
    def W(self) -> Array:
        """Integral of e^{L + S}."""
        return self._integral(np.exp(self.L + self.S))

    @cached_property
    def B(self) -> Array:
        """Integral of e^{-S} b."""
        return self._integral(np.exp(-self.S) * self.b)

    @cached_property
    def C(self) -> Array:
        """Integral of e^{L + S} B."""
        return self._integral(np.exp(self.L + self.S) * self.B)

    def moment(self, s: int, t: int, k: int) -> Array:
        """E_k: the integral from grid point s to t of e^{L + S - L_s - S_s} (lambda - lambda_s)^k / k!."""
        part = slice(s, t + 1)
        powers = (self.lambdas[part] - self.lambdas[s]) ** k / math.factorial(k)
        weight = np.exp(self.L[part] + self.S[part] - self.L[s] - self.S[s])
        values = weight * powers.reshape(-1, *(1,) * (self.l.ndim - 1))
        return np.asarray(self._integral(values)[-1] if t > s else np.zeros(self.shape), np.float64)


@dataclass(frozen=True)
class ModelStatistics:
    """What is known of a model besides its weights; either part may be missing."""

    mean: Array | None = None
    empirical: EmpiricalStatistics | None = None

    @cached_property
    def hash(self) -> str:
        """Content address: 16 hex digits."""
        digest = hashlib.sha256()
        for name, value in sorted(self._arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()[:16]

    def _arrays(self) -> dict[str, Array]:
        arrays = {} if self.mean is None else {"mean": self.mean}
        if self.empirical is not None:
            e = self.empirical
            arrays |= {"lambdas": e.lambdas, "l": e.l, "s": e.s, "b": e.b}
        return arrays

    def save(self, path: Path) -> None:
        """Write as safetensors, aside and then renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in self._arrays().items()}, aside)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> ModelStatistics:
        """Read what `save` wrote; DataError where it cannot be used."""
        try:
            arrays = {k: v.astype(np.float64) for k, v in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"cannot read the statistics {path}: {error}; make them with `fewstep statistics`"
            ) from error
        if "lambdas" not in arrays:
            return cls(arrays.get("mean"))
        lambdas = np.linspace(arrays["lambdas"][0], arrays["lambdas"][-1], len(arrays["lambdas"]))
        return cls(arrays.get("mean"), EmpiricalStatistics(lambdas, arrays["l"], arrays["s"], arrays["b"]))
