"""A solver schedule: every decision a few-step sampler makes, as data.

Times are kept as lambda = log(alpha / sigma), half the log signal-to-noise ratio, so that one schedule
fits any noise schedule and flow models too. Source: "A Unified Sampling Framework for Solver Searching
of Diffusion Probabilistic Models" (ICLR 2024), section 3.

Indices of points follow the paper's program: -1 is the newest point, -2 the one before, and so on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic import model_validator as check

from fewstep.errors import ScheduleError

SCHEMA_VERSION: Final = 1
MIN_GAP = 1e-3
MAX_STEPS = 200

Prediction = Literal["noise", "data"]
Relaxation = Literal["none", "linear", "bh1", "bh2", "scale"]


def _read_lambda(value: Any) -> Any:
    return math.inf if value == "inf" else value


def _write_lambda(value: float) -> float | str:
    return "inf" if value == math.inf else value


Lambda = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_read_lambda), PlainSerializer(_write_lambda)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Derivative(_Part):
    """How one derivative F^(k) is estimated: from which points, and by what factor it is relaxed.

    `points` are the active points besides the start, newest last. The factor is 1 (`none`), 1 + c h
    (`linear`), c (`scale`), or the one that turns the Taylor term into UniPC's bh1 or bh2.
    """

    points: tuple[int, ...]
    relaxation: Relaxation = "none"
    coefficient: float = Field(0.0, allow_inf_nan=False)

    @check(mode="after")
    def _points_are_past(self) -> Self:
        if not self.points or len(set(self.points)) != len(self.points) or max(self.points) > -1:
            raise ValueError(f"active points {self.points} must be distinct negative indices")
        return self


class Formula(_Part):
    """One Taylor step of order `len(derivatives) + 1` from the point `start`."""

    start: int = Field(-1, le=-1)
    derivatives: tuple[Derivative, ...] = Field((), max_length=5)

    @property
    def order(self) -> int:
        """Taylor order: how many terms of the expansion the step uses."""
        return len(self.derivatives) + 1

    @check(mode="after")
    def _derivatives_are_solvable(self) -> Self:
        for k, derivative in enumerate(self.derivatives, 1):
            if len(derivative.points) < k:
                raise ValueError(f"derivative {k} needs at least {k} active points, has {derivative.points}")
            if self.start in derivative.points:
                raise ValueError(f"the start point {self.start} cannot be an active point")
        return self


class Step(_Part):
    """From one time to the next: what is expanded, the predictor's formula, and an optional corrector.

    `pseudo` corrects with the call that the next step needs anyway; the corrector's formula counts the
    predicted point as -1.
    """

    prediction: Prediction = "data"
    predictor: Formula = Formula()
    corrector: Formula | None = None


class SolverSchedule(_Part):
    """A whole few-step solver. `lambdas` has one entry more than `steps`; the last may be inf (sigma = 0).

    `first_call` decides about the call at the starting noise: `model` makes it, `zero_x0` replaces it by
    the noise itself (no call). `name` and `provenance` say where it comes from and are not hashed.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    lambdas: tuple[Lambda, ...] = Field(min_length=2, max_length=MAX_STEPS + 1)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    first_call: Literal["model", "zero_x0"] = "model"
    name: str = ""
    provenance: dict[str, Any] = Field(default_factory=dict)

    @check(mode="after")
    def _is_consistent(self) -> Self:
        if len(self.lambdas) != len(self.steps) + 1:
            raise ValueError(f"{len(self.steps)} steps need {len(self.steps) + 1} lambdas, got {len(self.lambdas)}")
        for i, value in enumerate(self.lambdas):
            if math.isnan(value) or (math.isinf(value) and not (value > 0 and i == len(self.steps))):
                raise ValueError(f"lambdas[{i}] is {value}: only the last may be inf, none may be NaN")
        for i, (a, b) in enumerate(zip(self.lambdas, self.lambdas[1:], strict=False)):
            if b - a < MIN_GAP:
                raise ValueError(
                    f"times out of order: lambdas[{i + 1}] = {b:.6g} must exceed lambdas[{i}] = {a:.6g} "
                    f"by at least {MIN_GAP}"
                )
        for i, step in enumerate(self.steps):
            self._check_step(i, step)
        return self

    def _check_step(self, i: int, step: Step) -> None:
        oldest = min([step.predictor.start, *(p for d in step.predictor.derivatives for p in d.points)])
        if -oldest > i + 1:
            raise ValueError(f"steps[{i}] reaches back to point {oldest}, but only {i + 1} points exist by then")
        if step.corrector is not None:
            if i + 1 == len(self.steps):
                raise ValueError(
                    f"steps[{i}] is the last and cannot have a corrector: its point is never given to the model"
                )
            oldest = min([step.corrector.start, *(p for d in step.corrector.derivatives for p in d.points)])
            if step.corrector.start == -1 or -oldest > i + 2:
                raise ValueError(
                    f"the corrector of steps[{i}] starts at {step.corrector.start} and reaches back to {oldest}: "
                    f"it must start at -2 or earlier and stay within {i + 2} points"
                )
        if math.isinf(self.lambdas[i + 1]) and (step.predictor.order > 1 or step.prediction != "data"):
            raise ValueError(
                f"steps[{i}] goes to lambda = inf with order {step.predictor.order} and {step.prediction} "
                "prediction: such a step must be a first-order data step"
            )

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return len(self.steps) - (self.first_call != "model")

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
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ScheduleError(f"cannot read schedule {path}: {error.strerror}") from error
    try:
        return SolverSchedule.from_json(text)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
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


def pseudo_corrector(order: int, available: int, relaxation: Relaxation = "none") -> Formula:
    """Redo a step of predictor order `order` from its start, with the predicted point among the active ones.

    `available` is how many points existed before the step; the corrector's order is `order + 1`.
    """
    older: Sequence[int] = newest(min(order - 1, available - 1), start=-2)
    points = (*older, -1)
    kind: Relaxation = relaxation if len(points) == 1 else "none"
    derivatives = [Derivative(points=points, relaxation=kind if k == 1 else "none") for k in range(1, len(points) + 1)]
    return Formula(start=-2, derivatives=tuple(derivatives))
