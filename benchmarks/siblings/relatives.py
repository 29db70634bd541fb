"""A schedule as another one and corrections of it: which numbers of the tables and told times differ, and by how much.

Whatever a schedule decides ends as a table's numbers and told times. So of two with as many nodes and the same first
call, one samples exactly as the other with corrections, whatever their orders, formulas and times are:

    node'_{k+1} = sum_j P_kj node'_j + Q_kj o_j + points_k0 R_{k+1} y_0 + sum_j outputs_kj R_{k+1} eps_j

has as many free numbers as node k + 1 has coefficients of the starting noise and of outputs o_0 .. o_k; they follow one
from the other, from the newest output on. Networks whose input is scaled by lambda see the node that is scaled alike.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.corrections import LARGEST_TUNED_SHIFT
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.refinement.moment_model import Direction, directions_of
from fewstep.tasks.sampling.compile import Compiler, SolverTables

Array = npt.NDArray[np.float64]
# Of a coefficient: what is less is rounding.
ROUNDING = 1e-9


class Relatives:
    """What corrections of one schedule make others of it, on one model."""

    def __init__(
        self,
        schedule: SolverSchedule,
        noise: NoiseSchedule,
        output: str = "epsilon",
        statistics: ModelStatistics | None = None,
    ) -> None:
        self._schedule, self._model = schedule, (noise, output, statistics)
        self._compiler = Compiler(schedule, *self._model)
        self._tables = self._compiler.run()
        self.directions = directions_of(schedule)
        if self._tables.P.ndim > 2:
            raise ScheduleError(
                f"schedule {schedule.hash} has a coefficient for each pixel, which no corrections change: search "
                "without the decision 'ems'"
            )

    def corrections(self, other: SolverSchedule) -> Array:
        """One number a direction (n,), with which the schedule samples as `other`.

        ScheduleError where none do.
        """
        compiler = Compiler(other, *self._model)
        tables = compiler.run()
        self._check(other, tables)
        nodes, scales = len(tables.times), self._scales(tables)
        wanted, made = _expanded(tables) * scales[:, None], np.zeros((nodes + 1, nodes + 1))
        made[0, 0] = 1.0
        found: dict[Direction, float] = {}
        for k in range(nodes):
            missing = wanted[k + 1] - self._tables.P[k, : k + 1] @ wanted[: k + 1]
            missing[1 : k + 2] -= self._tables.Q[k, : k + 1]
            for j in range(k, -1, -1):
                if self._tables.called[j]:
                    whole = self._output(k, j, wanted[j])
                    share = missing[j + 1] / whole[j + 1]
                    missing = missing - share * whole
                    found[Direction("outputs", k, j)] = share
            found[Direction("points", k, 0)] = missing[0] / self._radius(k) * self._own_radius(0)
        for j in range(1, nodes):
            found[Direction("shifts", j, 0)] = self._shift(j, other, compiler)
        return np.array([found[direction] for direction in self.directions])

    def _check(self, other: SolverSchedule, tables: SolverTables) -> None:
        mine, ours = self._tables, self._schedule
        same_bias = (tables.bias is None) == (mine.bias is None)
        if same_bias and tables.bias is not None and mine.bias is not None:
            same_bias = tables.bias.shape == mine.bias.shape and np.allclose(tables.bias, mine.bias)
        limited = mine.threshold is not None and not np.allclose(tables.clean, mine.clean)
        differing = {
            "number of nodes": tables.called != mine.called or tables.P.ndim > 2,
            "start": tables.prior_scale != mine.prior_scale or other.lambdas[0] != ours.lambdas[0],
            "guidance": other.guidance != ours.guidance,
            "skips": other.skips != ours.skips,
            "threshold": tables.threshold != mine.threshold or limited,
            "constant term": not same_bias,
        }
        for name, differs in differing.items():
            if differs:
                raise ScheduleError(
                    f"schedule {other.name or other.hash} is none that corrections make of {ours.name or ours.hash}: "
                    f"its {name} differs"
                )

    def _scales(self, tables: SolverTables) -> Array:
        """What nodes (and the sample) of the other's are multiplied by here (nodes + 1,)."""
        ratios = [
            a / b if called else 1.0
            for a, b, called in zip(tables.input_scales, self._tables.input_scales, tables.called, strict=True)
        ]
        return np.array([*ratios, 1.0])

    def _radius(self, k: int) -> float:
        nodes = self._compiler.nodes
        end = nodes[k + 1].lambda_ if k + 1 < len(nodes) else self._schedule.lambdas[-1]
        return math.hypot(*self._model[0].alpha_sigma(end))

    def _own_radius(self, j: int) -> float:
        node = self._compiler.nodes[j]
        return math.hypot(node.alpha, node.sigma)

    def _output(self, k: int, j: int, node: Array) -> Array:
        """Change of node k + 1 by one unit of outputs[k][j], as coefficients of the noise and of outputs."""
        eps, nodes = self._compiler.nodes[j].eps, len(self._compiler.nodes)
        change = self._radius(k) * float(eps[j]) * node
        change[j + 1] += self._radius(k) * float(eps[nodes + j])
        return change

    def _shift(self, j: int, other: SolverSchedule, compiler: Compiler) -> float:
        def told(schedule: SolverSchedule, made: Compiler) -> float:
            shifts = schedule.corrections.shifts if schedule.corrections else ()
            return made.nodes[j].lambda_ + (shifts[j] if shifts else 0.0)

        shift = told(other, compiler) - told(self._schedule, self._compiler)
        held = told(self._schedule, self._compiler) - self._compiler.nodes[j].lambda_
        if abs(held + shift) > LARGEST_TUNED_SHIFT:
            raise ScheduleError(
                f"schedule {other.name or other.hash} tells call {j} a time {held + shift:.3g} in lambda off that "
                f"of {self._schedule.name or self._schedule.hash}: corrections move by {LARGEST_TUNED_SHIFT} at most"
            )
        return shift


def _expanded(tables: SolverTables) -> Array:
    """Nodes and the sample (nodes + 1, nodes + 1) as sums of the starting node and of outputs."""
    nodes = len(tables.times)
    found = np.zeros((nodes + 1, nodes + 1))
    found[0, 0] = 1.0
    for k in range(nodes):
        found[k + 1] = tables.P[k, : k + 1] @ found[: k + 1]
        found[k + 1, 1 : k + 2] += tables.Q[k, : k + 1]
    return found
