"""The space of solver schedules that the search walks in.

A `Genome` is a schedule cut down to the decisions that are searched; it converts to and from
`SolverSchedule`, to and from flat parameters (so that any Optuna sampler can drive it), and to a
feature matrix for the surrogate. Decisions and their ranges: USF, section 3.2 and its program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import (
    Derivative,
    Formula,
    Prediction,
    Relaxation,
    SolverSchedule,
    Step,
    newest,
    pseudo_corrector,
)

PREDICTIONS = ("noise", "data")
ORDERS = (1, 2, 3, 4)
ESTIMATES = (1, 2, 3)
RELAXATIONS = ("none", "linear", "bh1", "bh2", "half2")
FIRST_CALLS = ("model", "zero_x0")
ENDS = ("epsilon", "zero")
GAP_RANGE = 3.0
COEFFICIENT_RANGE = 0.5
SMALLEST_NFE, LARGEST_NFE = 1, 100


class Suggests(Protocol):
    """The part of optuna.Trial that the space uses."""

    def suggest_float(self, name: str, low: float, high: float) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Genes:
    """Decisions of one step. Orders above what the step's history allows are cut when it is built.

    `half2` is DPM-Solver++ 3M's halved second derivative; the other relaxations act on the first.
    """

    prediction: str = "data"
    order: int = 2
    estimate: int = 1
    relaxation: str = "none"
    coefficient: float = 0.0
    corrector: bool = False


@dataclass(frozen=True)
class Genome:
    """All decisions: rising finite lambdas and the end, the first call, and the genes of every step."""

    lambdas: tuple[float, ...]
    end: str
    first_call: str
    genes: tuple[Genes, ...]

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return len(self.genes) - (self.first_call != "model")


def _step(genes: Genes, i: int, steps: int, to_zero: bool) -> Step:
    if to_zero and i + 1 == steps:
        return Step()
    order = min(genes.order, i + 1)
    derivatives = []
    for k in range(1, order):
        kind, coefficient = "none", 0.0
        if k == 1 and genes.relaxation in ("linear", "bh1", "bh2"):
            kind, coefficient = genes.relaxation, genes.coefficient if genes.relaxation == "linear" else 0.0
        if k == 2 and genes.relaxation == "half2":
            kind, coefficient = "scale", 0.5
        points = newest(min(max(k, genes.estimate), i))
        derivatives.append(Derivative(points=points, relaxation=cast(Relaxation, kind), coefficient=coefficient))
    corrector = None
    if genes.corrector and i + 1 < steps:
        inherited = genes.relaxation if genes.relaxation in ("bh1", "bh2") else "none"
        corrector = pseudo_corrector(order, i + 1, cast(Relaxation, inherited))
    prediction = cast(Prediction, genes.prediction)
    return Step(prediction=prediction, predictor=Formula(derivatives=tuple(derivatives)), corrector=corrector)


def _genes(step: Step) -> Genes:
    derivatives = step.predictor.derivatives
    kind, coefficient = "none", 0.0
    if derivatives:
        kind, coefficient = derivatives[0].relaxation, derivatives[0].coefficient
    if len(derivatives) > 1 and derivatives[1].relaxation == "scale":
        kind, coefficient = "half2", 0.0
    if not derivatives and step.corrector is not None:
        kind = step.corrector.derivatives[0].relaxation
    estimate = len(derivatives[0].points) if derivatives else 1
    return Genes(step.prediction, len(derivatives) + 1, estimate, kind, coefficient, step.corrector is not None)


def to_schedule(genome: Genome, name: str = "") -> SolverSchedule:
    """The explicit schedule of a genome."""
    n, to_zero = len(genome.genes), genome.end == "zero"
    steps = tuple(_step(genes, i, n, to_zero) for i, genes in enumerate(genome.genes))
    lambdas = (*genome.lambdas, math.inf) if to_zero else genome.lambdas
    return SolverSchedule.build(lambdas=lambdas, steps=steps, first_call=genome.first_call, name=name)


def to_genome(schedule: SolverSchedule) -> Genome:
    """The genome of a schedule; ScheduleError where it uses decisions that are outside the searched space."""
    to_zero = math.isinf(schedule.lambdas[-1])
    genome = Genome(
        schedule.lambdas[:-1] if to_zero else schedule.lambdas,
        "zero" if to_zero else "epsilon",
        schedule.first_call,
        tuple(_genes(step) for step in schedule.steps),
    )
    if to_schedule(genome).hash != schedule.hash:
        raise ScheduleError(
            f"schedule {schedule.name or schedule.hash} uses decisions that the search space does not contain"
        )
    return genome


@dataclass(frozen=True)
class SolverSpace:
    """Schedules for a model whose noise starts at `lambda_start` and was trained up to `lambda_end`."""

    lambda_start: float
    lambda_end: float
    nfes: tuple[int, ...]

    def __post_init__(self) -> None:
        bad = [n for n in self.nfes if not SMALLEST_NFE <= n <= LARGEST_NFE]
        if bad or not self.nfes:
            raise ConfigurationError(
                f"NFE {bad[0] if bad else 'range'} is not possible: give numbers of denoiser calls "
                f"from {SMALLEST_NFE} to {LARGEST_NFE}, for example 3-6"
            )

    @property
    def last_range(self) -> tuple[float, float]:
        """Range of the last finite lambda."""
        return max(self.lambda_start + 1.0, self.lambda_end - 6.0), self.lambda_end + 1.0

    @property
    def max_steps(self) -> int:
        """Most steps of any member: one more than its calls where the first call is analytic."""
        return max(self.nfes) + 1

    def suggest(self, trial: Suggests) -> Genome:
        """Draw a member through an Optuna trial. Parameter names: see `parameters`."""
        nfe = int(trial.suggest_categorical("nfe", list(self.nfes)))
        # One call leaves no later step that could make up for an analytic first one.
        first = str(trial.suggest_categorical("first_call", list(FIRST_CALLS)))
        end = str(trial.suggest_categorical("end", list(ENDS)))
        steps = nfe + (first != "model")
        if steps == 1 and end == "zero":
            last = self.lambda_start
        else:
            last = trial.suggest_float("last_lambda", *self.last_range)
        gaps = steps - (end == "zero")
        logits = [trial.suggest_float(f"gap.{i}", -GAP_RANGE, GAP_RANGE) for i in range(gaps if gaps > 1 else 0)]
        genes = tuple(self._suggest_step(trial, i) for i in range(steps))
        return Genome(self._lambdas(last, logits if gaps > 1 else [0.0] * gaps), end, first, genes)

    def _suggest_step(self, trial: Suggests, i: int) -> Genes:
        prediction = str(trial.suggest_categorical(f"prediction.{i}", list(PREDICTIONS)))
        order = int(trial.suggest_categorical(f"order.{i}", list(ORDERS)))
        estimate = int(trial.suggest_categorical(f"estimate.{i}", list(ESTIMATES)))
        relaxation = str(trial.suggest_categorical(f"relaxation.{i}", list(RELAXATIONS)))
        coefficient = trial.suggest_float(f"coefficient.{i}", -COEFFICIENT_RANGE, COEFFICIENT_RANGE)
        corrector = bool(trial.suggest_categorical(f"corrector.{i}", [False, True]))
        return Genes(prediction, order, estimate, relaxation, coefficient, corrector)

    def _lambdas(self, last: float, logits: list[float]) -> tuple[float, ...]:
        if not logits:
            return (self.lambda_start,)
        weights = np.exp(np.asarray(logits) - max(logits))
        shares = np.cumsum(weights) / weights.sum()
        inner = self.lambda_start + shares[:-1] * (last - self.lambda_start)
        return (self.lambda_start, *(float(v) for v in inner), float(last))

    def parameters(self, genome: Genome) -> dict[str, Any]:
        """Flat parameters of a genome: what `suggest` would have drawn."""
        flat: dict[str, Any] = {"nfe": genome.nfe, "first_call": genome.first_call, "end": genome.end}
        gaps = np.diff(genome.lambdas)
        if len(gaps):
            low, high = self.last_range
            flat["last_lambda"] = min(max(genome.lambdas[-1], low), high)
        if len(gaps) > 1:
            # The largest gap sits at the upper end, so that rendering a rendered genome changes nothing.
            logits = np.log(gaps) - np.log(gaps).max() + GAP_RANGE
            flat |= {f"gap.{i}": float(v) for i, v in enumerate(np.clip(logits, -GAP_RANGE, GAP_RANGE))}
        for i, g in enumerate(genome.genes):
            flat |= {
                f"prediction.{i}": g.prediction,
                f"order.{i}": g.order,
                f"estimate.{i}": g.estimate,
                f"relaxation.{i}": g.relaxation,
                f"coefficient.{i}": float(np.clip(g.coefficient, -COEFFICIENT_RANGE, COEFFICIENT_RANGE)),
                f"corrector.{i}": g.corrector,
            }
        return flat

    def from_parameters(self, parameters: Mapping[str, Any]) -> Genome:
        """Inverse of `parameters`, up to the clipping of its ranges."""
        return self.suggest(_Fixed(parameters))


class _Fixed:
    """A trial that answers from a mapping."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self._values[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._values[name]


FEATURES = 8 + len(ORDERS) + len(RELAXATIONS)


def encode(genome: Genome) -> npt.NDArray[np.float32]:
    """Features (steps, FEATURES) of a genome's steps, each about in [-1, 1], for a sequence encoder."""
    n = len(genome.genes)
    rows = np.zeros((n, FEATURES), np.float32)
    ends = (*genome.lambdas[1:], *([genome.lambdas[-1] + 2.0] if genome.end == "zero" else []))
    for i, g in enumerate(genome.genes):
        order = min(g.order, i + 1) if not (genome.end == "zero" and i + 1 == n) else 1
        orders = [float(order == o) for o in ORDERS]
        # A first-order step has no derivative to relax, but it lends its relaxation to its corrector.
        kinds = [float((order > 1 or g.corrector) and g.relaxation == kind) for kind in RELAXATIONS]
        rows[i] = [
            genome.lambdas[i] / 5,
            (ends[i] - genome.lambdas[i]) / 2,
            float(genome.end == "zero" and i + 1 == n),
            float(genome.first_call != "model" and i == 0),
            1.0 if g.prediction == "data" else -1.0,
            min(g.estimate, i) / 3 if order > 1 else 0.0,
            4 * g.coefficient if order > 1 and g.relaxation == "linear" else 0.0,
            float(g.corrector and i + 1 < n),
            *orders,
            *kinds,
        ]
    return rows
