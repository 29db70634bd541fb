"""Numbers that a refinement adds to what a schedule's formulas say: to the tables, and to the told times.

Filters are beyond what any table can say: a weighted sum of outputs treats all frequencies of an image alike, a small
kernel on each does not. Source of the idea: SpanLift (2606.08672), whose operator is a small network; this is linear.

They are kept in a frame that all noise families share, x / sqrt(alpha^2 + sigma^2), so that a refined schedule
still fits any noise schedule and flow models too. Source: "Generalized Adversarial Solver":
a formula plus learned corrections trains better than free coefficients.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Self

from pydantic import Field
from pydantic import model_validator as check

from fewstep.search_spaces.schedule.formula import Part

Number = Annotated[float, Field(allow_inf_nan=False)]
Row = tuple[Number, ...]
# How far a refinement moves a told time, and how far any schedule does: diffusers' UniPC starts a flow at lambda =
# -13.8 and tells its network the whole number below, 999 of 1000.
LARGEST_TUNED_SHIFT, LARGEST_SHIFT = 5.0, 10.0


class Corrections(Part):
    """With y_j = x_j / sqrt(alpha_j^2 + sigma_j^2), node k + 1 gets sum_j points[k][j] y_j + outputs[k][j] eps_j more.

    Nodes are the points that the denoiser is called at, in their order, and the sample; row k has k + 1 entries.
    Call j is told the time of lambda_j + shifts[j]. An empty tuple stands for zeros.

    Filters add more: y_k under the kernel point_filters[k], and each eps_j under output_filters[k][j]. A kernel is a
    square of odd side, row by row, laid over every channel alike (cross-correlation, zeros beyond the edge).
    """

    _omitted: ClassVar[frozenset[str]] = frozenset({"points", "outputs", "shifts", "point_filters", "output_filters"})

    points: tuple[Row, ...] = ()
    outputs: tuple[Row, ...] = ()
    shifts: Row = ()
    point_filters: tuple[Row, ...] = ()
    output_filters: tuple[tuple[Row, ...], ...] = ()

    @check(mode="after")
    def _are_triangular(self) -> Self:
        for name in ("points", "outputs", "output_filters"):
            for k, row in enumerate(getattr(self, name)):
                if len(row) != k + 1:
                    what = "kernels" if name == "output_filters" else "numbers"
                    raise ValueError(f"{name}[{k}] has {len(row)} {what}, row {k} takes {k + 1}")
        for j, shift in enumerate(self.shifts):
            if abs(shift) > LARGEST_SHIFT:
                raise ValueError(
                    f"shifts[{j}] is {shift:.6g}: a told time may move by {LARGEST_SHIFT} in lambda at most"
                )
        return self

    @check(mode="after")
    def _are_square(self) -> Self:
        sizes = {len(kernel) for kernel in self._kernels}
        for size in sizes:
            if math.isqrt(size) ** 2 != size or size % 2 == 0:
                raise ValueError(f"a kernel of {size} numbers is no square of odd side: give 9, 25, ...")
        if len(sizes) > 1:
            raise ValueError(f"kernels of {' and '.join(map(str, sorted(sizes)))} numbers: give all the same side")
        return self

    @property
    def _kernels(self) -> tuple[Row, ...]:
        return (*self.point_filters, *(kernel for row in self.output_filters for kernel in row))

    @property
    def filter_side(self) -> int:
        """The side of the kernels, 0 without filters."""
        return math.isqrt(len(self._kernels[0])) if self._kernels else 0

    def check_nodes(self, nodes: int) -> None:
        """ValueError unless they are made for that many nodes."""
        for name in ("points", "outputs", "shifts", "point_filters", "output_filters"):
            given = len(getattr(self, name))
            if given not in (0, nodes):
                raise ValueError(f"the schedule has {nodes} nodes, its corrections {given} {name}")

    @property
    def largest(self) -> float:
        """The largest number added to a table, or in a kernel."""
        rows = (*self.points, *self.outputs, *self._kernels)
        return max((abs(v) for row in rows for v in row), default=0.0)

    @property
    def largest_shift(self) -> float:
        """The furthest that a told time moves, in lambda."""
        return max((abs(v) for v in self.shifts), default=0.0)

    @property
    def are_zero(self) -> bool:
        """Whether they change nothing."""
        return math.isclose(self.largest, 0.0) and math.isclose(self.largest_shift, 0.0)
