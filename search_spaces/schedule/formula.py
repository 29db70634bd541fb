"""One step's arithmetic as data: Taylor formulas, multistep blends, and the helpers that build them.

Indices of points follow the paper's program: -1 is the newest point, -2 the one before, and so on.
Source: USF (ICLR 2024), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic import model_validator as check

Relaxation = Literal["none", "linear", "bh1", "bh2", "scale"]


class Part(BaseModel):
    """A frozen piece of a schedule. Fields named in `_omitted` are written only where they are set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    _omitted: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        defaults = type(self).model_fields
        return {k: v for k, v in fields.items() if k not in self._omitted or getattr(self, k) != defaults[k].default}


class Derivative(Part):
    """How one derivative F^(k) is estimated: from which points, and by what factor it is relaxed.

    `points` are the active points besides the start, newest last. The factor is 1 (`none`), 1 + c h
    (`linear`), c (`scale`), or the one that turns the Taylor term into UniPC's bh1 or bh2.
    """

    points: tuple[int, ...]
    relaxation: Relaxation = "none"
    coefficient: float = Field(0.0, allow_inf_nan=False)

    @check(mode="after")
    def _points_are_past(self) -> Self:
        _check_points(self.points)
        return self


class Blend(Part):
    """F replaced by a weighted mean of F at `points`, in a first-order step: Adams-Bashforth, iPNDM, DEIS, Heun."""

    points: tuple[int, ...]
    weights: tuple[float, ...]

    @check(mode="after")
    def _is_a_mean(self) -> Self:
        _check_points(self.points)
        if len(self.points) != len(self.weights):
            raise ValueError(f"{len(self.points)} points need as many weights, got {len(self.weights)}")
        if not abs(sum(self.weights) - 1) < 1e-9:
            raise ValueError(f"the weights of a blend sum to {sum(self.weights):.6g}, they must sum to 1")
        return self


class Formula(Part):
    """One Taylor step of order `len(derivatives) + 1` from the point `start`, or a first-order step on a blend."""

    _omitted: ClassVar[frozenset[str]] = frozenset({"blend"})

    start: int = Field(-1, le=-1)
    derivatives: tuple[Derivative, ...] = Field((), max_length=5)
    blend: Blend | None = None

    @property
    def order(self) -> int:
        """How many terms the step uses: the Taylor order, or the number of blended points."""
        return len(self.blend.points) if self.blend else len(self.derivatives) + 1

    @property
    def oldest(self) -> int:
        """The oldest point the step reads."""
        blended = self.blend.points if self.blend else ()
        return min([self.start, *blended, *(p for d in self.derivatives for p in d.points)])

    @check(mode="after")
    def _derivatives_are_solvable(self) -> Self:
        if self.blend and self.derivatives:
            raise ValueError("a formula has derivatives or a blend, not both")
        for k, derivative in enumerate(self.derivatives, 1):
            if len(derivative.points) < k:
                raise ValueError(f"derivative {k} needs at least {k} active points, has {derivative.points}")
            if self.start in derivative.points:
                raise ValueError(f"the start point {self.start} cannot be an active point")
        return self


def _check_points(points: Sequence[int]) -> None:
    if not points or len(set(points)) != len(points) or max(points) > -1:
        raise ValueError(f"active points {tuple(points)} must be distinct negative indices")


def newest(count: int, start: int = -1) -> tuple[int, ...]:
    """The `count` newest points older than `start`, oldest first."""
    return tuple(range(start - count, start))


def taylor(order: int, points: int | None = None, relaxation: Relaxation = "none", c: float = 0.0) -> Formula:
    """A multistep formula of the given order from the newest point; only F^(1) is relaxed."""
    derivatives: list[Derivative] = []
    for k in range(1, order):
        active = newest(max(k, points if points is not None else order - 1))
        kind: Relaxation = relaxation if k == 1 else "none"
        coefficient = c if kind in ("linear", "scale") else 0.0
        derivatives.append(Derivative(points=active, relaxation=kind, coefficient=coefficient))
    return Formula(derivatives=tuple(derivatives))


def blended(weights: Sequence[float], start: int = -1) -> Formula:
    """A first-order step from `start` on the mean of the newest outputs; `weights` newest first."""
    points = tuple(range(-1, -1 - len(weights), -1))
    return Formula(start=start, blend=Blend(points=points, weights=tuple(float(w) for w in weights)))


def pseudo_corrector(order: int, available: int, relaxation: Relaxation = "none") -> Formula:
    """Redo a step of predictor order `order` from its start, with the predicted point among the active ones.

    `available` is how many points existed before the step; the corrector's order is `order + 1`.
    """
    older: Sequence[int] = newest(min(order - 1, available - 1), start=-2)
    points = (*older, -1)
    kind: Relaxation = relaxation if len(points) == 1 else "none"
    derivatives = [Derivative(points=points, relaxation=kind if k == 1 else "none") for k in range(1, len(points) + 1)]
    return Formula(start=-2, derivatives=tuple(derivatives))
