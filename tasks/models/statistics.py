"""Statistics of one model that some schedules need: its mean training image, and DPM-Solver-v3's l, s and b.

Shapes: mean (C, H, W); l, s, b (G, C, H, W) on a uniform grid of G rising lambdas. Source: "DPM-Solver-v3"
(2310.13268), section 3, and USF's program, which reads them at the nearest grid point.
`tasks/sampling/empirical.py` measures them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fewstep.errors import DataError, ScheduleError

if TYPE_CHECKING:
    from fewstep.tasks.models.files import ModelFiles

Array = npt.NDArray[np.float64]
FINEST = 0.02


class Curve:
    """A map per pixel along the grid, read at a position: grid point i at i, and between two points too.

    Values (G, C, H, W). Between points it is linear, or, where `integrand` is given, its trapezoid from the
    point before.
    """

    def __init__(self, values: Array, integrand: Callable[[float], Array] | None = None, gap: float = 0.0) -> None:
        self.values, self.integrand, self.gap = values, integrand, gap

    def __getitem__(self, position: float) -> Array:
        """The map (C, H, W) at a position in [0, G - 1]."""
        i = int(position)
        share, at = position - i, np.asarray(self.values[i], np.float64)
        if share == 0:
            return at
        if self.integrand is None:
            return np.asarray((1 - share) * at + share * self.values[i + 1], np.float64)
        return at + 0.5 * share * self.gap * (self.integrand(i) + self.integrand(position))


class EmpiricalStatistics:
    """l, s, b on a uniform grid of lambdas, with the integrals that a step needs (trapezoids from the grid's start).

    `rounded` reads everything at the nearest grid point, as the published programs do, which asks for a grid of
    many hundred points. Otherwise l, s and b are linear between their points and read at lambda itself, so
    that a step is exact for any times; the integrals then use parts of at most FINEST.
    """

    def __init__(
        self, lambdas: npt.ArrayLike, l: npt.ArrayLike, s: npt.ArrayLike, b: npt.ArrayLike, rounded: bool = True
    ) -> None:
        self.lambdas = np.asarray(lambdas, np.float64)
        self.maps = {name: np.asarray(v, np.float64) for name, v in (("l", l), ("s", s), ("b", b))}
        self.rounded = rounded
        gaps = np.diff(self.lambdas)
        if self.lambdas.ndim != 1 or len(self.lambdas) < 2 or not np.all(gaps > 0) or np.ptp(gaps) > 1e-6 * gaps.max():
            raise DataError("the lambdas of empirical statistics must be a uniform rising grid of at least 2")
        if {v.shape for v in self.maps.values()} != {(len(self.lambdas), *self.shape)}:
            raise DataError(f"l, s and b must have one map for each of the {len(self.lambdas)} lambdas, of one shape")
        if not all(np.all(np.isfinite(v)) for v in self.maps.values()):
            raise DataError("l, s and b of empirical statistics must be finite")
        gap = float(self.lambdas[-1] - self.lambdas[0]) / (len(self.lambdas) - 1)
        self._parts = 1 if rounded else max(1, math.ceil(gap / FINEST))
        self._gap = gap / self._parts
        self._count = self._parts * (len(self.lambdas) - 1) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.maps["l"].shape[1:])

    def nearest(self, lambda_: float) -> float:
        """The position at which everything is read; ScheduleError where the grid is more than half a gap away."""
        position = (lambda_ - float(self.lambdas[0])) / self._gap
        slack = 0.5 * self._parts + 1e-9 / self._gap
        if not -slack <= position <= self._count - 1 + slack:
            raise ScheduleError(
                f"lambda = {lambda_:.6g} is outside the model's statistics, which reach from "
                f"{self.lambdas[0]:.6g} to {self.lambdas[-1]:.6g}"
            )
        if self.rounded:
            return int(np.argmin(np.abs(self.lambdas - lambda_)))
        return min(max(position, 0.0), self._count - 1.0)

    def _given(self, name: str) -> Curve:
        values = self.maps[name]
        if self._parts > 1:
            coarse = Curve(values)
            values = np.stack([coarse[i / self._parts] for i in range(self._count)])
        return Curve(values)

    def _integral(self, integrand: Callable[[float], Array]) -> Curve:
        values = np.stack([integrand(i) for i in range(self._count)])
        out = np.zeros_like(values)
        np.cumsum(0.5 * self._gap * (values[1:] + values[:-1]), axis=0, out=out[1:])
        return Curve(out, integrand, self._gap)

    @cached_property
    def l(self) -> Curve:  # noqa: E743
        """l itself."""
        return self._given("l")

    @cached_property
    def s(self) -> Curve:
        """s itself."""
        return self._given("s")

    @cached_property
    def b(self) -> Curve:
        """b itself."""
        return self._given("b")

    @cached_property
    def L(self) -> Curve:
        """Integral of l."""
        return self._integral(self.l.__getitem__)

    @cached_property
    def S(self) -> Curve:
        """Integral of s."""
        return self._integral(self.s.__getitem__)

    def _weight(self, position: float) -> Array:
        return np.exp(self.L[position] + self.S[position])

    @cached_property
    def W(self) -> Curve:
        """Integral of e^{L + S}."""
        return self._integral(self._weight)

    @cached_property
    def B(self) -> Curve:
        """Integral of e^{-S} b."""
        return self._integral(lambda p: np.exp(-self.S[p]) * self.b[p])

    @cached_property
    def C(self) -> Curve:
        """Integral of e^{L + S} B."""
        return self._integral(lambda p: self._weight(p) * self.B[p])

    def moment(self, s: float, t: float, k: int) -> Array:
        """E_k: the integral from position s to t of e^{L + S - L_s - S_s} (lambda - lambda_s)^k / k!."""
        if not t > s:
            return np.zeros(self.shape)
        first, last = int(s) + 1, math.ceil(t)
        offsets = (np.array([s, *range(first, last), t]) - s) * self._gap
        start, end = (self.L[p] + self.S[p] for p in (s, t))
        between = self.L.values[first:last] + self.S.values[first:last]
        exponents = np.concatenate([start[None], between, end[None]]) - start
        powers = (offsets**k / math.factorial(k)).reshape(-1, *(1,) * len(self.shape))
        return np.asarray(np.trapezoid(np.exp(exponents) * powers, offsets, axis=0), np.float64)


@dataclass(frozen=True)
class ModelStatistics:
    """What is known of a model besides its weights; either part may be missing. `model` is the model's hash."""

    mean: Array | None = None
    empirical: EmpiricalStatistics | None = None
    model: str = ""

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
            arrays |= {"lambdas": e.lambdas, **e.maps}
        return arrays

    def save(self, path: Path) -> None:
        """Write as safetensors, aside and then renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in self._arrays().items()}
        save_file(arrays, aside, {"model": self.model})
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> ModelStatistics:
        """Read what `save` wrote, to be read at any lambda; DataError where it cannot be used."""
        try:
            with safe_open(path, "np") as file:
                model = (file.metadata() or {}).get("model", "")
                arrays = {k: file.get_tensor(k).astype(np.float64) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise DataError(
                f"cannot read the statistics {path}: {error}; make them with `fewstep statistics`"
            ) from error
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise DataError(f"{path}: {name} holds values that are not finite: make it with `fewstep statistics`")
        missing = sorted({"lambdas", "l", "s", "b"} - set(arrays))
        if len(missing) == 4:
            return cls(arrays.get("mean"), model=model)
        if missing or not arrays["lambdas"].size:
            what = f"has no {missing[0]}" if missing else "has no lambdas"
            raise DataError(f"{path} {what}: make the statistics with `fewstep statistics`")
        # Rounded to float32, the grid would be uniform to seven digits only.
        lambdas = np.linspace(arrays["lambdas"][0], arrays["lambdas"][-1], len(arrays["lambdas"]))
        try:
            empirical = EmpiricalStatistics(lambdas, arrays["l"], arrays["s"], arrays["b"], rounded=False)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return cls(arrays.get("mean"), empirical, model)

    @classmethod
    def load_for(cls, path: Path, files: ModelFiles) -> ModelStatistics:
        """Read the statistics of this very model; DataError where they were measured on another one."""
        found = cls.load(path)
        shape = found.empirical.shape if found.empirical else found.mean.shape if found.mean is not None else None
        if found.model not in ("", files.hash) or shape not in (None, tuple(files.shape)):
            raise DataError(
                f"{path} holds statistics of another model than {files.name}: make its own with "
                f"`fewstep statistics --model {files.name}`"
            )
        return found
