"""A schedule's continuous decisions as one vector, and back.

Blocks of the vector theta, in this order, each only where it is tuned:

    times        log(gap - least gap) of the finite lambdas after the first; the first stays
    relaxations  c of the factor 1 + c h on each predictor's first derivative (taken up at c = 0 where there is none)
    shifts       u_j with the told time at lambda_j + bound_j tanh(u_j), bound_j half of the smaller neighbouring gap
    points       corrections of P, row by row
    outputs      corrections of Q, row by row, within `window` of the newest calls where that is given
    filters      kernels of each row's newest point and of the outputs, within `window` too, row by row

`start` means the schedule as it was, within rounding. Sources: LD3 (2405.15506), section 4, for times and told times;
GAS ("Generalized Adversarial Solver") for the corrections; SpanLift (2606.08672) for what filters are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import MIN_GAP, SolverSchedule, Step
from fewstep.search_spaces.schedule.corrections import Corrections

Array = npt.NDArray[np.float64]
Part = Literal["times", "relaxations", "shifts", "points", "outputs", "filters"]
PARTS: tuple[Part, ...] = get_args(Part)
# Filters need more images than the others to be better on new ones.
USUAL: tuple[Part, ...] = tuple(part for part in PARTS if part != "filters")
# In whose values the tables are linear.
LINEAR: tuple[Part, ...] = ("points", "outputs", "filters")
FILTER_SIDE = 3
LEAST_GAP = 0.02
SHIFT_SHARE = 0.5
# Where u of a told time that was shifted to its bound begins, so that it can still come back.
LARGEST_START = 0.999


@dataclass(frozen=True)
class Block:
    """Where one kind of decision stands in the vector."""

    part: Part
    slice: slice


@dataclass(frozen=True)
class Direction:
    """Corrections that are 1 at one place of each of some rows, and where these stand in the vector, by row.

    Of a kernel of `cells` numbers that place is the first one; the others follow it in the vector and in the tables.
    """

    unit: Corrections
    places: dict[int, int]
    cells: int = 1


class Parameters:
    """The vector of one schedule.

    `window` limits corrected and filtered outputs to that many of the newest calls (0: all). Filters have the side of
    those that the schedule has, or FILTER_SIDE.
    """

    def __init__(self, schedule: SolverSchedule, parts: tuple[Part, ...], window: int = 0) -> None:
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ConfigurationError(
                f"nothing to tune is called {unknown[0] if unknown else ''!r}: choose from {', '.join(PARTS)}"
            )
        self.schedule, self.window = schedule, window
        self._finite = [i for i in range(1, len(schedule.lambdas)) if math.isfinite(schedule.lambdas[i])]
        if math.isinf(schedule.lambdas[0]):
            # Nothing is at a finite distance from pure noise: the first finite lambda stays too.
            self._finite = self._finite[1:]
        self._relaxed = [i for i, step in enumerate(schedule.steps) if _may_relax(step)]
        self._called = list(range(schedule.first_call != "model", schedule.nodes))
        self._bounds = _shift_bounds(schedule)
        K = schedule.nodes
        held = schedule.corrections
        self.side = held.filter_side if held and held.filter_side else FILTER_SIDE
        # A kernel's column: -1 the newest point, else the output.
        self._entries = {
            "points": [(k, j) for k in range(K) for j in range(k + 1)],
            "outputs": [(k, j) for k in range(K) for j in self._called if k - (window or K) < j <= k],
            "filters": [(k, j) for k in range(K) for j in (-1, *self._called) if j < 0 or k - (window or K) < j <= k],
        }
        gaps = [b - a for a, b in self._gap_ends()]
        self._least = min([LEAST_GAP, *(0.5 * gap for gap in gaps)])
        starts = {part: self._start(part) for part in PARTS if part in parts}
        self.blocks: list[Block] = []
        offset = 0
        for part, values in starts.items():
            self.blocks.append(Block(part, slice(offset, offset + len(values))))
            offset += len(values)
        self.start: Array = np.concatenate([np.asarray(v, np.float64) for v in starts.values()])
        if not len(self.start):
            raise ConfigurationError(f"this schedule has no {' or '.join(parts)} that could be tuned")

    def schedule_at(self, theta: Array) -> SolverSchedule:
        """The schedule that a vector means; its name, provenance and discrete decisions are those of the start."""
        fields: dict[str, object] = {}
        corrections: dict[str, object] = {}
        for block in self.blocks:
            values = theta[block.slice]
            match block.part:
                case "times":
                    fields["lambdas"] = self._lambdas(values)
                case "relaxations":
                    fields["steps"] = self._steps(values)
                case "shifts":
                    shifts = np.zeros(self.schedule.nodes)
                    shifts[self._called] = self._bounds[self._called] * np.tanh(values)
                    corrections["shifts"] = tuple(float(v) for v in shifts)
                case "filters":
                    corrections |= self._kernels(values, self.schedule.corrections or Corrections())
                case _:
                    corrections[block.part] = self._rows(block.part, values)
        if corrections:
            held = self.schedule.corrections or Corrections()
            fields["corrections"] = held.model_copy(update=corrections)
        return self.schedule.model_copy(update=fields)

    def linear_directions(self) -> list[Direction]:
        """Corrections whose tables give the exact derivatives by those of the schedule at theta, many at once.

        The tables are linear in the corrections, and row k only depends on its own: with all of column j at 1, row k
        is the derivative by entry (k, j).
        """
        found, nodes = [], self.schedule.nodes
        for block in self.blocks:
            if block.part not in LINEAR:
                continue
            entries, first = self._entries[block.part], int(block.slice.start)
            for j in sorted({j for _, j in entries}):
                at = {k: i for i, (k, column) in enumerate(entries) if column == j}
                if block.part == "filters":
                    size = self.side**2
                    values = np.zeros((len(entries), size))
                    values[list(at.values()), 0] = 1.0
                    unit = Corrections.model_validate(self._kernels(values.ravel(), Corrections()))
                    found.append(Direction(unit, {k: first + i * size for k, i in at.items()}, size))
                    continue
                table = [[float(column == j and k in at) for column in range(k + 1)] for k in range(nodes)]
                unit = Corrections.model_validate({block.part: table})
                found.append(Direction(unit, {k: first + i for k, i in at.items()}))
        return found

    # -- each part, there and back --------------------------------------------------------------------

    def _start(self, part: Part) -> list[float]:
        held = self.schedule.corrections or Corrections()
        match part:
            case "times":
                return [math.log(b - a - self._least) for a, b in self._gap_ends()]
            case "relaxations":
                return [self.schedule.steps[i].predictor.derivatives[0].coefficient for i in self._relaxed]
            case "shifts":
                shares = [held.shifts[j] / self._bounds[j] if held.shifts else 0.0 for j in self._called]
                return [math.atanh(min(max(s, -LARGEST_START), LARGEST_START)) for s in shares]
            case "filters":
                own, outputs, zeros = held.point_filters, held.output_filters, (0.0,) * self.side**2
                kernels = [
                    (own[k] if own else zeros) if j < 0 else (outputs[k][j] if outputs else zeros)
                    for k, j in self._entries[part]
                ]
                return [value for kernel in kernels for value in kernel]
            case _:
                table = getattr(held, part)
                return [table[k][j] if table else 0.0 for k, j in self._entries[part]]

    def _gap_ends(self) -> list[tuple[float, float]]:
        lambdas = self.schedule.lambdas
        return [(lambdas[i - 1], lambdas[i]) for i in self._finite]

    def _lambdas(self, values: Array) -> tuple[float, ...]:
        lambdas = list(self.schedule.lambdas)
        for i, value in zip(self._finite, values, strict=True):
            lambdas[i] = lambdas[i - 1] + self._least + math.exp(value)
        return tuple(lambdas)

    def _steps(self, values: Array) -> tuple[Step, ...]:
        steps = list(self.schedule.steps)
        for i, value in zip(self._relaxed, values, strict=True):
            predictor = steps[i].predictor
            first = predictor.derivatives[0].model_copy(update={"relaxation": "linear", "coefficient": float(value)})
            derivatives = (first, *predictor.derivatives[1:])
            steps[i] = steps[i].model_copy(
                update={"predictor": predictor.model_copy(update={"derivatives": derivatives})}
            )
        return tuple(steps)

    def _rows(self, part: Part, values: Array) -> tuple[tuple[float, ...], ...]:
        table = [[0.0] * (k + 1) for k in range(self.schedule.nodes)]
        held = getattr(self.schedule.corrections, part) if self.schedule.corrections else ()
        for k, row in enumerate(held):
            table[k] = list(row)
        for (k, j), value in zip(self._entries[part], values, strict=True):
            table[k][j] = float(value)
        return tuple(tuple(row) for row in table)

    def _kernels(self, values: Array, held: Corrections) -> dict[str, object]:
        """The fields of corrections that kernels, one after the other, stand for; others are those that are held."""
        size = self.side**2
        zeros = (0.0,) * size
        points = list(held.point_filters) or [zeros] * self.schedule.nodes
        outputs = [list(row) for row in held.output_filters] or [[zeros] * (k + 1) for k in range(self.schedule.nodes)]
        for (k, j), kernel in zip(self._entries["filters"], values.reshape(-1, size), strict=True):
            numbers = tuple(float(v) for v in kernel)
            if j < 0:
                points[k] = numbers
            else:
                outputs[k][j] = numbers
        return {"point_filters": tuple(points), "output_filters": tuple(map(tuple, outputs))}


def _may_relax(step: Step) -> bool:
    derivatives = step.predictor.derivatives
    return bool(derivatives) and derivatives[0].relaxation in ("none", "linear")


def _shift_bounds(schedule: SolverSchedule) -> Array:
    """Half of the smaller finite gap beside each node, in lambda; an implicit call has that of its time."""
    lambdas, places = schedule.lambdas, [0]
    for i, step in enumerate(schedule.steps):
        last = i + 1 == len(schedule.steps)
        if not last or step.corrector is not None:
            places.append(i + 1)
        if step.implicit and not last:
            places.append(i + 1)
    bounds = []
    for i in places:
        gaps = [lambdas[i] - lambdas[i - 1]] if i else []
        gaps += [lambdas[i + 1] - lambdas[i]] if i + 1 < len(lambdas) else []
        finite = [gap for gap in gaps if math.isfinite(gap)]
        bounds.append(SHIFT_SHARE * min(finite, default=MIN_GAP))
    return np.array(bounds)
