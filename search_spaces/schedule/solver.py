"""A solver schedule: every decision a few-step sampler makes, as data.

Times are kept as lambda = log(alpha / sigma), half the log signal-to-noise ratio, so that one schedule
fits any noise schedule and flow models too. Source: "A Unified Sampling Framework for Solver Searching
of Diffusion Probabilistic Models" (ICLR 2024), section 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema
from pydantic import model_validator as check

from fewstep.errors import ScheduleError
from fewstep.files import read_text
from fewstep.search_spaces.checked import shown
from fewstep.search_spaces.schedule.corrections import Corrections
from fewstep.search_spaces.schedule.formula import Formula, Part

SCHEMA_VERSION: Final = 1
MIN_GAP = 1e-3
MAX_STEPS = 200

Prediction = Literal["noise", "data", "ems"]
FirstCall = Literal["model", "zero_x0", "mean_x0"]


def _read_lambda(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value


def _write_lambda(value: float) -> float | str:
    return str(value) if math.isinf(value) else value


# JSON has no number for infinity.
_IN_JSON = WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf"]}]})
Lambda = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(_read_lambda), PlainSerializer(_write_lambda), _IN_JSON
]


class Step(Part):
    """From one time to the next: what is expanded, the predictor's formula, and an optional corrector.

    `prediction` is what the step integrates: the noise eps, the data x0, or DPM-Solver-v3's empirical model
    statistics (`ems`). A corrector's formula counts the predicted point as -1. It is a pseudo corrector: the
    call at the predicted point is the one that the next step needs anyway. With `implicit` the denoiser is
    called once more, at the corrected point.
    """

    _omitted: ClassVar[frozenset[str]] = frozenset({"implicit"})

    prediction: Prediction = "data"
    predictor: Formula = Formula()
    corrector: Formula | None = None
    implicit: bool = False

    @check(mode="after")
    def _implicit_needs_a_corrector(self) -> Self:
        if self.implicit and self.corrector is None:
            raise ValueError("implicit means a call at the corrected point: give a corrector")
        return self


class Threshold(Part):
    """x0 kept in range after every call: clipped to [-limit, limit], or by each image's own quantile of |x0|.

    `dynamic` clips at the quantile, kept within [1, limit], and divides by it (Imagen, 2205.11487).
    """

    kind: Literal["static", "dynamic"]
    limit: float = Field(1.0, gt=0, allow_inf_nan=False)
    quantile: float = Field(0.995, gt=0, le=1)


class SolverSchedule(Part):
    """A whole few-step solver. `lambdas` has one entry more than `steps`.

    The last may be inf (sigma = 0), the first -inf (alpha = 0, where flow models start). `first_call` decides
    about the call at the starting noise: `model` makes it; `zero_x0` takes the noise itself for eps and
    `mean_x0` the mean training image for x0 (no call). `guidance` is the scale of classifier-free guidance
    the schedule was found for; `skips` multiplies the network's skip tensors, from the first that is
    concatenated to the last; `corrections` are what a refinement added to its tables. `name` and `provenance`
    say where it comes from and are not hashed.
    """

    _omitted: ClassVar[frozenset[str]] = frozenset({"guidance", "skips", "threshold", "corrections"})

    schema_version: Literal[1] = SCHEMA_VERSION
    lambdas: tuple[Lambda, ...] = Field(min_length=2, max_length=MAX_STEPS + 1)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    first_call: FirstCall = "model"
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    skips: tuple[Annotated[float, Field(ge=0, le=2)], ...] = ()
    threshold: Threshold | None = None
    corrections: Corrections | None = None
    name: str = ""
    provenance: dict[str, Any] = Field(default_factory=dict)

    @check(mode="after")
    def _is_consistent(self) -> Self:
        n = len(self.steps)
        if len(self.lambdas) != n + 1:
            raise ValueError(f"{n} steps need {n + 1} lambdas, got {len(self.lambdas)}")
        for i, value in enumerate(self.lambdas):
            if math.isnan(value) or (value == math.inf and i < n) or (value == -math.inf and i > 0):
                raise ValueError(
                    f"lambdas[{i}] is {value}: only the last may be inf, only the first -inf, none may be NaN"
                )
        for i, (a, b) in enumerate(zip(self.lambdas, self.lambdas[1:], strict=False)):
            if not b - a >= MIN_GAP:
                raise ValueError(
                    f"times out of order: lambdas[{i + 1}] = {b:.6g} must exceed lambdas[{i}] = {a:.6g} "
                    f"by at least {MIN_GAP}"
                )
        for i, step in enumerate(self.steps):
            self._check_step(i, step)
        if self.corrections is not None:
            self.corrections.check_nodes(self.nodes)
        return self

    def _check_step(self, i: int, step: Step) -> None:
        oldest = step.predictor.oldest
        if -oldest > i + 1:
            raise ValueError(f"steps[{i}] reaches back to point {oldest}, but only {i + 1} points exist by then")
        formulas = [(step.predictor, i + 1 + step.predictor.start)]
        if step.corrector is not None:
            oldest = step.corrector.oldest
            if step.corrector.start == -1 or -oldest > i + 2:
                raise ValueError(
                    f"the corrector of steps[{i}] starts at {step.corrector.start} and reaches back to {oldest}: "
                    f"it must start at -2 or earlier and stay within {i + 2} points"
                )
            formulas.append((step.corrector, i + 2 + step.corrector.start))
            if step.implicit and i + 1 == len(self.steps):
                raise ValueError(f"steps[{i}] is the last: a call at its corrected point would serve nobody")
        self._check_ends(i, step, formulas)

    def _check_ends(self, i: int, step: Step, formulas: list[tuple[Formula, int]]) -> None:
        """Steps from lambda = -inf and to lambda = inf have finite limits only where they are first-order."""
        plain = not step.predictor.derivatives and step.prediction != "ems"
        if self.lambdas[i + 1] == math.inf:
            finite = plain and step.corrector is None and (step.prediction == "data" or step.predictor.blend)
            if not finite:
                raise ValueError(
                    f"steps[{i}] goes to lambda = inf with order {step.predictor.order} and {step.prediction} "
                    "prediction: such a step must be a first-order data step, or a blend, without corrector"
                )
        for formula, start in formulas:
            if self.lambdas[start] == -math.inf and (formula.derivatives or step.prediction != "data"):
                raise ValueError(
                    f"steps[{i}] starts at lambda = -inf with order {formula.order} and {step.prediction} "
                    "prediction: such a step must be a first-order data step"
                )

    @property
    def nodes(self) -> int:
        """Number of points that a compiled table has a row for: those that the denoiser may be called at."""
        extra = sum(step.implicit for step in self.steps) + (self.steps[-1].corrector is not None)
        return len(self.steps) + extra

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image: steps, implicit correctors, one for a corrected last step."""
        return self.nodes - (self.first_call != "model")

    @property
    def needs_statistics(self) -> bool:
        """Whether it can only run with statistics of the model: mean image or empirical model statistics."""
        return self.first_call == "mean_x0" or any(step.prediction == "ems" for step in self.steps)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced, unchecked; its hash is computed anew."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("hash", None)
        return copy

    @cached_property
    def hash(self) -> str:
        """Content address of the decisions: 16 hex digits, the same for equal schedules on any machine."""
        content = self.model_dump(exclude={"name", "provenance"})
        text = json.dumps(_rounded(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self, indent: int | None = None) -> str:
        """The schedule as JSON; `from_json` reads it back exactly."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> SolverSchedule:
        """Read a schedule; ScheduleError says which entry is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ScheduleError(f"not a valid solver schedule: {_first_problem(error)}") from None

    @classmethod
    def build(cls, **fields: Any) -> SolverSchedule:
        """Construct from Python values; ScheduleError instead of pydantic's error."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ScheduleError(f"not a valid solver schedule: {_first_problem(error)}") from None


def load_schedule(path: str | Path) -> SolverSchedule:
    """Read a schedule from a JSON file; ScheduleError names the file and the entry that is wrong."""
    text = read_text(path, "schedule", ScheduleError)
    try:
        return SolverSchedule.from_json(text)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    # Names of fields that are none come from the file, whatever is in them.
    where = ".".join(shown(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    # Our own messages name their value; pydantic's do not.
    if first["type"] not in ("value_error", "json_invalid"):
        value = repr(first["input"])
        message += f", got {value if len(value) <= 60 else value[:57] + '...'}"
    return f"{where}: {message}" if where else message


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.12g}") + 0.0  # -0.0 becomes 0.0, which it equals
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
