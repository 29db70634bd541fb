"""A genome: a solver schedule cut down to the decisions that are searched, to and from `SolverSchedule`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step, Threshold
from fewstep.search_spaces.schedule.formula import Derivative, Formula, Relaxation, newest, pseudo_corrector

ORDERS = (1, 2, 3, 4)
RELAXATIONS = ("none", "linear", "bh1", "bh2", "half2")
STARTS = (-1, -2)
# How the JSON of a point that is a schedule alone begins.
ALONE = '{"kind":"schedule","schedule":'
THRESHOLDS = ("none", "static", "dynamic")


@dataclass(frozen=True, slots=True)
class Genes:
    """Decisions of one step. Orders above what the step's history allows are cut when it is built.

    `half2` is DPM-Solver++ 3M's halved second derivative; the other relaxations act on the first. `start` is
    the point that is expanded around; -2 makes the step a singlestep one.
    """

    prediction: str = "data"
    order: int = 2
    estimate: int = 1
    relaxation: str = "none"
    coefficient: float = 0.0
    corrector: bool = False
    start: int = -1


@dataclass(frozen=True, slots=True)
class Genome:
    """All decisions: rising finite lambdas and the end, the first call, and the genes of every step.

    The last three are decided for all steps together, where the space searches them.
    """

    lambdas: tuple[float, ...]
    end: str
    first_call: str
    genes: tuple[Genes, ...]
    threshold: str = "none"
    guidance: float | None = None
    skips: tuple[float, ...] = ()

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return len(self.genes) - (self.first_call != "model")


def _step(genes: Genes, i: int, steps: int, to_zero: bool) -> Step:
    # A coefficient of -0.0 equals that of 0.0, and is written otherwise.
    return _step_of(genes, math.copysign(1.0, genes.coefficient), i, steps, to_zero)


@lru_cache(maxsize=4096)
def _step_of(genes: Genes, sign: float, i: int, steps: int, to_zero: bool) -> Step:
    """Steps are frozen, and children share most of their parents'."""
    if to_zero and i + 1 == steps:
        return Step()
    order = min(genes.order, i + 1)
    start = max(genes.start, -(i + 1))
    derivatives = []
    for k in range(1, order):
        kind, coefficient = "none", 0.0
        if k == 1 and genes.relaxation in ("linear", "bh1", "bh2"):
            kind, coefficient = genes.relaxation, genes.coefficient if genes.relaxation == "linear" else 0.0
        if k == 2 and genes.relaxation == "half2":
            kind, coefficient = "scale", 0.5
        points = _active(min(max(k, genes.estimate), i), start)
        derivatives.append(Derivative(points=points, relaxation=cast(Relaxation, kind), coefficient=coefficient))
    corrector = None
    if genes.corrector and i + 1 < steps:
        inherited = genes.relaxation if genes.relaxation in ("bh1", "bh2") else "none"
        corrector = pseudo_corrector(order, i + 1, cast(Relaxation, inherited))
    prediction = cast(Prediction, genes.prediction)
    formula = Formula(start=start, derivatives=tuple(derivatives))
    return Step(prediction=prediction, predictor=formula, corrector=corrector)


def _active(count: int, start: int) -> tuple[int, ...]:
    """The `count` newest points besides the start, oldest first."""
    return newest(count) if start == -1 else (*newest(count - 1, start), -1)


def _genes(step: Step) -> Genes:
    derivatives = step.predictor.derivatives
    kind, coefficient = "none", 0.0
    if derivatives:
        kind, coefficient = derivatives[0].relaxation, derivatives[0].coefficient
    if len(derivatives) > 1 and derivatives[1].relaxation == "scale":
        kind, coefficient = "half2", 0.0
    if not derivatives and step.corrector is not None and step.corrector.derivatives:
        kind = step.corrector.derivatives[0].relaxation
    estimate = len(derivatives[0].points) if derivatives else 1
    what, sign = (step.prediction, len(derivatives) + 1, estimate, kind), math.copysign(1.0, coefficient)
    return _genes_of(*what, coefficient, sign, step.corrector is not None, step.predictor.start)


def to_schedule(genome: Genome, name: str = "") -> SolverSchedule:
    """The explicit schedule of a genome."""
    n, to_zero = len(genome.genes), genome.end == "zero"
    steps = tuple(_step(genes, i, n, to_zero) for i, genes in enumerate(genome.genes))
    return SolverSchedule.build(
        lambdas=(*genome.lambdas, math.inf) if to_zero else genome.lambdas,
        steps=steps,
        first_call=genome.first_call,
        threshold=None if genome.threshold == "none" else Threshold(kind=cast(Any, genome.threshold)),
        guidance=genome.guidance,
        skips=genome.skips,
        name=name,
    )


def to_genome(schedule: SolverSchedule) -> Genome:
    """The genome of a schedule; ScheduleError where it uses decisions that are outside the searched space."""
    if math.isinf(schedule.lambdas[0]):
        raise ScheduleError(
            f"schedule {schedule.name or schedule.hash} starts at lambda = -inf (a flow's t = 1), and what is searched "
            "has finite times: let it start at the model's own lambda"
        )
    to_zero = math.isinf(schedule.lambdas[-1])
    genome = Genome(
        schedule.lambdas[:-1] if to_zero else schedule.lambdas,
        "zero" if to_zero else "epsilon",
        schedule.first_call,
        tuple(_genes(step) for step in schedule.steps),
        schedule.threshold.kind if schedule.threshold else "none",
        schedule.guidance,
        schedule.skips,
    )
    alike = _has_steps_of(genome, schedule) or _decide_alike(to_schedule(genome), schedule)
    if not alike or any(g.start not in STARTS for g in genome.genes):
        raise ScheduleError(
            f"schedule {schedule.name or schedule.hash} uses decisions that the search space does not contain"
        )
    return genome


def stored_genome(text: str) -> Genome:
    """The genome of a schedule from its point's JSON as it is written, without making the schedule; of a member alone.

    What is between two steps' beginnings is read once: members share most of their steps.
    """
    first, *steps = text.split(_STEP)
    last, found, rest = steps[-1].partition(_AFTER) if steps else ("", "", "")
    if not (first.startswith(_BEFORE) and first.endswith(_STEPS) and found):
        return _of_fields(json.loads(text)["schedule"])
    lambdas = json.loads(first[len(_BEFORE) : -len(_STEPS)])
    genes = (*map(_read_genes, [step[:-1] for step in steps[:-1]]), _read_genes(last))
    return _genome(lambdas, genes, *_read_rest(rest))


_BEFORE, _STEPS = f'{ALONE}{{"schema_version":1,"lambdas":', ',"steps":['
_STEP, _AFTER = '{"prediction":', '],"first_call":'


def _of_fields(schedule: Mapping[str, Any]) -> Genome:
    return _genome(schedule["lambdas"], tuple(map(_stored_genes, schedule["steps"])), *_rest(schedule))


def _genome(
    lambdas: Sequence[Any],
    genes: tuple[Genes, ...],
    first_call: str,
    threshold: str,
    guidance: float | None,
    skips: tuple[float, ...],
) -> Genome:
    to_zero = lambdas[-1] == "inf"
    times = tuple(map(float, lambdas[:-1] if to_zero else lambdas))
    return Genome(times, "zero" if to_zero else "epsilon", first_call, genes, threshold, guidance, skips)


def _rest(schedule: Mapping[str, Any]) -> tuple[str, str, float | None, tuple[float, ...]]:
    """First call, threshold, guidance and skips."""
    threshold, guidance = schedule.get("threshold"), schedule.get("guidance")
    skips = tuple(map(float, schedule.get("skips", ())))
    first_call, scale = schedule.get("first_call", "model"), None if guidance is None else float(guidance)
    return first_call, threshold["kind"] if threshold else "none", scale, skips


@lru_cache(maxsize=256)
def _read_rest(text: str) -> tuple[str, str, float | None, tuple[float, ...]]:
    """The same from what follows the steps."""
    return _rest(json.loads(f'{{"first_call":{text[:-1]}'))


@lru_cache(maxsize=8192)
def _read_genes(text: str) -> Genes:
    return _stored_genes(json.loads(_STEP + text))


def _stored_genes(step: Mapping[str, Any]) -> Genes:
    """As `_genes`, of a step's JSON."""
    predictor, corrector = step.get("predictor", {}), step.get("corrector")
    derivatives = predictor.get("derivatives", ())
    kind, coefficient, estimate = "none", 0.0, 1
    if derivatives:
        first = derivatives[0]
        kind, coefficient = first.get("relaxation", "none"), float(first.get("coefficient", 0.0))
        estimate = len(first["points"])
        if len(derivatives) > 1 and derivatives[1].get("relaxation") == "scale":
            kind, coefficient = "half2", 0.0
    elif corrector is not None and corrector.get("derivatives"):
        kind = corrector["derivatives"][0].get("relaxation", "none")
    what, sign = (step.get("prediction", "data"), len(derivatives) + 1, estimate, kind), math.copysign(1.0, coefficient)
    return _genes_of(*what, coefficient, sign, corrector is not None, predictor.get("start", -1))


@lru_cache(maxsize=4096)
def _genes_of(
    prediction: str, order: int, estimate: int, kind: str, value: float, sign: float, corrector: bool, start: int
) -> Genes:
    """Members share most of their genes."""
    return Genes(prediction, order, estimate, kind, value, corrector, start)


def _has_steps_of(genome: Genome, schedule: SolverSchedule) -> bool:
    """Whether the genome's steps are the schedule's, and the schedule has nothing that a genome has not."""
    kind = schedule.threshold.kind if schedule.threshold else None
    if schedule.corrections is not None or (kind and schedule.threshold != Threshold(kind=kind)):
        return False
    n, to_zero = len(genome.genes), genome.end == "zero"
    return schedule.steps == tuple(_step(genes, i, n, to_zero) for i, genes in enumerate(genome.genes))


def _decide_alike(a: SolverSchedule, b: SolverSchedule) -> bool:
    decisions = [name for name in SolverSchedule.model_fields if name not in ("name", "provenance")]
    # Hashes round, and take longer.
    return all(getattr(a, name) == getattr(b, name) for name in decisions) or a.hash == b.hash


FEATURES = 13 + len(ORDERS) + len(RELAXATIONS)


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
            {"data": 1.0, "noise": -1.0}.get(g.prediction, 0.0),
            float(genome.first_call == "mean_x0" and i == 0),
            float(g.start == -2 and i > 0),
            THRESHOLDS.index(genome.threshold) / 2,
            (genome.guidance or 0.0) / 8,
            1.0 - sum(genome.skips) / len(genome.skips) if genome.skips else 0.0,
            min(g.estimate, i) / 3 if order > 1 else 0.0,
            4 * g.coefficient if order > 1 and g.relaxation == "linear" else 0.0,
            float(g.corrector and i + 1 < n),
            *orders,
            *kinds,
        ]
    return rows
