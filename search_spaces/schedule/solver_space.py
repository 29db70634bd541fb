"""The space of solver schedules that the search walks in.

Its members are genomes; the space says which decisions they have and in which ranges, and turns them to and
from flat parameters, so that any Optuna sampler can drive it. Ranges: USF, section 3.2 and its program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule.genome import ORDERS, RELAXATIONS, STARTS, THRESHOLDS, Genes, Genome
from fewstep.search_spaces.trials import Fixed, Suggests

PREDICTIONS = ("noise", "data", "ems")
ESTIMATES = (1, 2, 3)
FIRST_CALLS = ("model", "zero_x0", "mean_x0")
ENDS = ("epsilon", "zero")
# Decisions that are searched only where they are asked for.
EXTRA_DECISIONS = ("start", "start-points", "threshold", "skips", "mean-x0", "ems")
GAP_RANGE = 3.0
COEFFICIENT_RANGE = 0.5
LATEST_START = 0.9
SKIP_RANGE = (0.5, 1.0)
SMALLEST_NFE, LARGEST_NFE = 1, 100


@dataclass(frozen=True)
class Extras:
    """Decisions beyond the usual ones: `decisions` out of EXTRA_DECISIONS, and what they range over.

    `skips` is the number of the network's skip tensors; `guidance` the lowest and highest scale.
    """

    decisions: frozenset[str] = frozenset()
    skips: int = 0
    guidance: tuple[float, float] | None = None


@dataclass(frozen=True)
class SolverSpace:
    """Schedules for a model whose noise starts at `lambda_start` and was trained up to `lambda_end`."""

    lambda_start: float
    lambda_end: float
    nfes: tuple[int, ...]
    extras: Extras = field(default_factory=Extras)

    def __post_init__(self) -> None:
        bad = [n for n in self.nfes if not SMALLEST_NFE <= n <= LARGEST_NFE]
        if bad or not self.nfes:
            raise ConfigurationError(
                f"NFE {bad[0] if bad else 'range'} is not possible: give numbers of denoiser calls "
                f"from {SMALLEST_NFE} to {LARGEST_NFE}, for example 3-6"
            )

    def searches(self, decision: str) -> bool:
        """Whether one of the extra decisions is searched."""
        return decision in self.extras.decisions

    @property
    def predictions(self) -> tuple[str, ...]:
        """Predictions a step may have."""
        return PREDICTIONS if self.searches("ems") else PREDICTIONS[:2]

    @property
    def first_calls(self) -> tuple[str, ...]:
        """What may become of the first call."""
        return FIRST_CALLS if self.searches("mean-x0") else FIRST_CALLS[:2]

    @property
    def thresholds(self) -> tuple[str, ...]:
        """Thresholds of x0."""
        return THRESHOLDS if self.searches("threshold") else THRESHOLDS[:1]

    @property
    def skips(self) -> int:
        """How many skip tensors get a factor of their own."""
        return self.extras.skips if self.searches("skips") else 0

    @property
    def first_range(self) -> tuple[float, float]:
        """Range of the first lambda."""
        late = LATEST_START if self.searches("start") else 0.0
        return self.lambda_start, self.lambda_start + late

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
        first = str(trial.suggest_categorical("first_call", list(self.first_calls)))
        end = str(trial.suggest_categorical("end", list(ENDS)))
        steps = nfe + (first != "model")
        start = trial.suggest_float("start_lambda", *self.first_range) if self.searches("start") else self.lambda_start
        if steps == 1 and end == "zero":
            last = start
        else:
            last = trial.suggest_float("last_lambda", *self.last_range)
        gaps = steps - (end == "zero")
        logits = [trial.suggest_float(f"gap.{i}", -GAP_RANGE, GAP_RANGE) for i in range(gaps if gaps > 1 else 0)]
        genes = tuple(self._suggest_step(trial, i) for i in range(steps))
        lambdas = self._lambdas(start, last, logits if gaps > 1 else [0.0] * gaps)
        return Genome(lambdas, end, first, genes, *self._suggest_whole(trial))

    def _suggest_whole(self, trial: Suggests) -> tuple[str, float | None, tuple[float, ...]]:
        threshold = "none"
        if len(self.thresholds) > 1:
            threshold = str(trial.suggest_categorical("threshold", list(self.thresholds)))
        guidance = None
        if self.extras.guidance:
            guidance = trial.suggest_float("guidance", *self.extras.guidance)
        return threshold, guidance, tuple(trial.suggest_float(f"skip.{j}", *SKIP_RANGE) for j in range(self.skips))

    def _suggest_step(self, trial: Suggests, i: int) -> Genes:
        prediction = str(trial.suggest_categorical(f"prediction.{i}", list(self.predictions)))
        order = int(trial.suggest_categorical(f"order.{i}", list(ORDERS)))
        estimate = int(trial.suggest_categorical(f"estimate.{i}", list(ESTIMATES)))
        relaxation = str(trial.suggest_categorical(f"relaxation.{i}", list(RELAXATIONS)))
        coefficient = trial.suggest_float(f"coefficient.{i}", -COEFFICIENT_RANGE, COEFFICIENT_RANGE)
        corrector = bool(trial.suggest_categorical(f"corrector.{i}", [False, True]))
        start = -1
        if self.searches("start-points"):
            start = int(trial.suggest_categorical(f"start.{i}", list(STARTS)))
        return Genes(prediction, order, estimate, relaxation, coefficient, corrector, start)

    @staticmethod
    def _lambdas(start: float, last: float, logits: list[float]) -> tuple[float, ...]:
        if not logits:
            return (start,)
        weights = np.exp(np.asarray(logits) - max(logits))
        shares = np.cumsum(weights) / weights.sum()
        inner = start + shares[:-1] * (last - start)
        return (start, *(float(v) for v in inner), float(last))

    def parameters(self, genome: Genome) -> dict[str, Any]:
        """Flat parameters of a genome: what `suggest` would have drawn."""
        flat: dict[str, Any] = {"nfe": genome.nfe, "first_call": genome.first_call, "end": genome.end}
        if self.searches("start"):
            flat["start_lambda"] = float(np.clip(genome.lambdas[0], *self.first_range))
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
            if self.searches("start-points"):
                flat[f"start.{i}"] = g.start
        if len(self.thresholds) > 1:
            flat["threshold"] = genome.threshold
        if self.extras.guidance:
            low, high = self.extras.guidance
            flat["guidance"] = float(
                np.clip(0.5 * (low + high) if genome.guidance is None else genome.guidance, low, high)
            )
        factors = genome.skips or (1.0,) * self.skips
        return flat | {f"skip.{j}": float(np.clip(v, *SKIP_RANGE)) for j, v in enumerate(factors)}

    def from_parameters(self, parameters: Mapping[str, Any]) -> Genome:
        """Inverse of `parameters`, up to the clipping of its ranges."""
        return self.suggest(Fixed(parameters))
