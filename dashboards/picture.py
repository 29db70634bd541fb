"""The picture of a schedule, before any library draws it.

Above, a column of equal width for each step says what was decided there; a thin line leads from each
column to its step on the lambda axis below, where the steps are as long as they are. So the words never
collide, however close the times lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, Formula

LANES = ("prediction", "order", "relaxation", "corrector")
"""From the top down; lane k is drawn at height LANE_TOP - k, the axis at height 0."""

LANE_TOP = 5.0
NONE = "–"
_STANDS_IN = {"zero_x0": "the noise itself", "mean_x0": "the mean image"}
BREAK = 0.14
MARGIN = 0.05


@dataclass(frozen=True)
class Span:
    """A stretch of the lambda axis: finite times lie in low..high, pure noise and sigma = 0 apart at its ends."""

    low: float
    high: float
    has_zero: bool
    has_noise: bool = False

    @property
    def width(self) -> float:
        """Length of the finite part; a lone time gets a width of 1."""
        return self.high - self.low if self.high > self.low else 1.0

    @property
    def zero(self) -> float:
        """Where sigma = 0, which has no place on the axis, is drawn."""
        return self.high + BREAK * self.width

    @property
    def noise(self) -> float:
        """Where alpha = 0, the start of a zero-SNR schedule, is drawn."""
        return self.low - BREAK * self.width

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the axis with a margin."""
        first = self.noise if self.has_noise else self.low
        last = self.zero if self.has_zero else self.high
        return first - MARGIN * self.width, last + MARGIN * self.width

    def place(self, lambda_: float) -> float:
        """Where a time is drawn."""
        if math.isinf(lambda_):
            return self.zero if lambda_ > 0 else self.noise
        return lambda_


@dataclass(frozen=True)
class StepPicture:
    """One step: where it is drawn, which words stand over it, and the whole story in one line."""

    start: float
    end: float
    off_axis: bool
    column: float
    words: tuple[str, ...]
    prediction: str
    details: str

    @property
    def middle(self) -> float:
        """Middle of the step on the axis."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Mark:
    """One time: `called` tells whether the denoiser is called there."""

    place: float
    called: bool
    details: str


@dataclass(frozen=True)
class Picture:
    """A schedule laid out on a span."""

    span: Span
    steps: tuple[StepPicture, ...]
    marks: tuple[Mark, ...]


def span_of(schedules: Iterable[SolverSchedule]) -> Span:
    """The span that shows all of some schedules; one picture beside another wants the same one."""
    times = [value for schedule in schedules for value in schedule.lambdas]
    finite = [value for value in times if math.isfinite(value)]
    finite = finite or [0.0]
    return Span(min(finite), max(finite), math.inf in times, -math.inf in times)


def lay_out(schedule: SolverSchedule, span: Span | None = None) -> Picture:
    """Places and words of a schedule's picture, on its own span or a wider one."""
    span = span or span_of([schedule])
    low, high = span.ends
    width = (high - low) / len(schedule.steps)
    steps = []
    for i, step in enumerate(schedule.steps):
        start, end = schedule.lambdas[i], schedule.lambdas[i + 1]
        steps.append(
            StepPicture(
                span.place(start),
                span.place(end),
                math.isinf(start) or math.isinf(end),
                low + (i + 0.5) * width,
                words(step),
                step.prediction,
                f"step {i + 1}: {time_text(start)} to {time_text(end)}, {_story(step)}",
            )
        )
    return Picture(span, tuple(steps), tuple(_marks(schedule, span)))


def words(step: Step) -> tuple[str, ...]:
    """What stands in each lane of a step."""
    corrector = NONE
    if step.corrector is not None:
        parts = (_order(step.corrector), _relaxation(step.corrector), "implicit" if step.implicit else NONE)
        corrector = " ".join(w for w in parts if w != NONE)
    return step.prediction, _order(step.predictor), _relaxation(step.predictor), corrector


def extras(schedule: SolverSchedule) -> str:
    """Decisions that hold for all steps, in words; empty where there are none."""
    parts = []
    if schedule.guidance is not None:
        parts.append(f"guidance {schedule.guidance:.3g}")
    if schedule.skips:
        parts.append("skips × " + " ".join(f"{value:.2f}" for value in schedule.skips))
    if schedule.threshold is not None:
        kind, limit = schedule.threshold.kind, schedule.threshold.limit
        quantile = f" at quantile {schedule.threshold.quantile:g}" if kind == "dynamic" else ""
        parts.append(f"{kind} thresholding to {limit:g}{quantile}")
    if schedule.corrections is not None:
        corrected = schedule.corrections
        parts.append(f"corrected by up to {corrected.largest:.2g}, told times by up to {corrected.largest_shift:.2g}")
    return ", ".join(parts)


def _marks(schedule: SolverSchedule, span: Span) -> list[Mark]:
    marks, call = [], 0
    for i, value in enumerate(schedule.lambdas):
        called = i < len(schedule.steps) and (i > 0 or schedule.first_call == "model")
        call += called
        if called:
            details = f"call {call} at {time_text(value)}"
        elif i == 0:
            details = f"no call at {time_text(value)}: {_STANDS_IN[schedule.first_call]} stands in"
        else:
            details = f"end at {time_text(value)}"
        marks.append(Mark(span.place(value), called, details))
    return marks


def time_text(lambda_: float) -> str:
    """A time on the lambda axis in words."""
    if math.isinf(lambda_):
        return "σ = 0" if lambda_ > 0 else "α = 0"
    return f"λ = {lambda_:.3f}"


def _story(step: Step) -> str:
    parts = [f"{step.prediction} prediction", f"predictor {_formula(step.predictor)}"]
    kind = "implicit corrector" if step.implicit else "corrector"
    parts.append(f"{kind} {_formula(step.corrector)}" if step.corrector else "no corrector")
    return ", ".join(parts)


def _formula(formula: Formula) -> str:
    active = sorted({point for d in formula.derivatives for point in d.points})
    text = f"of order {formula.order} from point {formula.start}"
    if active:
        text += f" with points {', '.join(map(str, active))}"
    if formula.blend is not None:
        text += f" with a blend of points {', '.join(map(str, formula.blend.points))}"
    relaxation = _relaxation(formula)
    return text if relaxation == NONE else f"{text}, relaxed {relaxation}"


def _order(formula: Formula) -> str:
    if formula.blend is not None:
        return f"blend of {len(formula.blend.points)}"
    points = {formula.start, *(point for d in formula.derivatives for point in d.points)}
    return f"{formula.order}" if len(points) <= formula.order else f"{formula.order} ({len(points)} pts)"


def _relaxation(formula: Formula) -> str:
    relaxed = [
        _factor(derivative) + (f" F{k}" if k > 1 else "")
        for k, derivative in enumerate(formula.derivatives, 1)
        if derivative.relaxation != "none"
    ]
    return ", ".join(relaxed) or NONE


def _factor(derivative: Derivative) -> str:
    if derivative.relaxation == "linear":
        return f"1{derivative.coefficient:+.2g}h".replace("-", "−")
    if derivative.relaxation == "scale":
        return f"×{derivative.coefficient:.2g}"
    return derivative.relaxation
