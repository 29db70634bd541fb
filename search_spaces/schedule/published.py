"""Read the decisions of a schedule in the published USF program's own keys.

Keys: `timesteps` (n + 1, falling, from noise), and per step `orders`, `prediction_types`, `start_points`,
`derivative_types`, `corrector_types`; `afs` says what becomes of the first call. A pseudo corrector on the
last step is listed there but never run, so it is dropped, and an implicit one makes no call there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, Formula

PREDICTIONS = {"noise_prediction": "noise", "data_prediction": "data", "dpmsolver_v3_prediction": "ems"}
RELAXATIONS = {None: "none", "linear": "linear", "bh1": "bh1", "bh2": "bh2", "dpmsolver-2": "bh2"}
FIRST_CALLS = {"no_afs": "model", None: "model", "zero_x0": "zero_x0", "average_x0": "mean_x0", "mean_x0": "mean_x0"}
CORRECTORS = {"no_corrector": "", "pseudo": "pseudo", "implicit": "implicit"}
REQUIRED = ("timesteps", "orders", "prediction_types", "derivative_types", "corrector_types")
SKIPS = ("skip_coefficients", "skip_coeffs", "skip_coef")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Estimate(_Keys):
    active_points: tuple[int, ...]
    relaxation: str | None = None
    relaxation_coefficient: Finite | None = None


class _Corrector(_Keys):
    type: str
    start_point: int | None = None
    taylor_order: int | None = None
    derivative_type: tuple[_Estimate, ...] | None = None


class _Decisions(_Keys):
    timesteps: tuple[Finite, ...]
    orders: tuple[int, ...]
    prediction_types: tuple[str, ...]
    start_points: tuple[int, ...] | None = None
    derivative_types: tuple[tuple[_Estimate, ...], ...]
    corrector_types: tuple[_Corrector, ...]
    afs: str | None = None


def is_published(value: Any) -> bool:
    """Whether a value looks like one schedule's decisions."""
    return isinstance(value, Mapping) and all(key in value for key in REQUIRED)


def read_published(decisions: Mapping[str, Any], to_lambda: Callable[[float], float], name: str = "") -> SolverSchedule:
    """The schedule that the published keys describe; `to_lambda` turns a timestep into lambda.

    Skip factors that are all 1 change nothing and are left out, so that the schedule fits any network.
    Raises ScheduleError that names the key and the step that cannot be read.
    """
    missing = [key for key in REQUIRED if key not in decisions]
    if missing:
        raise ScheduleError(f"not a published schedule: the key {missing[0]!r} is missing")
    try:
        keys = _Decisions.model_validate(dict(decisions))
        skips = _Skips(factors=next((decisions[key] for key in SKIPS if decisions.get(key) is not None), ()))
    except ValidationError as error:
        raise ScheduleError(f"not a published schedule: {_problem(error)}") from None
    _check_lengths(keys)
    n = len(keys.orders)
    return SolverSchedule.build(
        lambdas=tuple(_lambda(i, t, to_lambda) for i, t in enumerate(keys.timesteps)),
        steps=tuple(_step(keys, i, last=i + 1 == n) for i in range(n)),
        first_call=_one_of(FIRST_CALLS, keys.afs, "afs"),
        skips=() if all(factor == 1 for factor in skips.factors) else skips.factors,
        name=name,
    )


class _Skips(_Keys):
    factors: tuple[Finite, ...]


def _check_lengths(keys: _Decisions) -> None:
    n = len(keys.orders)
    lengths = {
        key: len(getattr(keys, key)) for key in (*REQUIRED[1:], "start_points") if getattr(keys, key) is not None
    }
    if len(keys.timesteps) != n + 1 or any(length != n for length in lengths.values()):
        raise ScheduleError(
            f"a published schedule of {n} steps has {len(keys.timesteps)} timesteps and {lengths}: "
            f"expected {n + 1} timesteps and {n} of everything else"
        )
    for i, (earlier, later) in enumerate(zip(keys.timesteps, keys.timesteps[1:], strict=False)):
        if not later < earlier:
            raise ScheduleError(
                f"timesteps[{i + 1}] = {later:.6g} comes after {earlier:.6g}: "
                "the timesteps must fall, from noise to image"
            )


def _lambda(i: int, t: float, to_lambda: Callable[[float], float]) -> float:
    try:
        return to_lambda(t)
    except (ConfigurationError, ValueError) as error:
        raise ScheduleError(f"timesteps[{i}] = {t:.6g}: {error}") from None


def _one_of(table: Mapping[Any, str], value: Any, key: str) -> str:
    if value not in table:
        raise ScheduleError(f"{key} is {value!r}: known are {', '.join(str(k) for k in table)}")
    return table[value]


def _step(keys: _Decisions, i: int, last: bool) -> Step:
    where = f"derivative_types[{i}]"
    if keys.orders[i] != len(keys.derivative_types[i]) + 1:
        raise ScheduleError(
            f"orders[{i}] is {keys.orders[i]}, but {where} holds {len(keys.derivative_types[i])} derivatives: "
            "an order has one derivative less"
        )
    start = keys.start_points[i] if keys.start_points else -1
    predictor = _formula(start, keys.derivative_types[i], where)
    where, corrector = f"corrector_types[{i}]", keys.corrector_types[i]
    kind = _one_of(CORRECTORS, corrector.type, where)
    formula = None
    if kind and not last:
        if corrector.start_point is None or corrector.derivative_type is None:
            raise ScheduleError(f"{where} is {corrector.type!r} without start_point or derivative_type: give both")
        found = len(corrector.derivative_type) + 1
        if corrector.taylor_order not in (None, found):
            raise ScheduleError(f"{where}: taylor_order is {corrector.taylor_order}, its derivatives make it {found}")
        formula = _formula(corrector.start_point, corrector.derivative_type, where)
    return Step(
        prediction=_one_of(PREDICTIONS, keys.prediction_types[i], f"prediction_types[{i}]"),
        predictor=predictor,
        corrector=formula,
        implicit=formula is not None and kind == "implicit",
    )


def _formula(start: int, estimates: tuple[_Estimate, ...], where: str) -> Formula:
    try:
        derivatives = tuple(
            Derivative(
                points=estimate.active_points,
                relaxation=_one_of(RELAXATIONS, estimate.relaxation, f"{where}[{k}].relaxation"),
                coefficient=estimate.relaxation_coefficient or 0.0,
            )
            for k, estimate in enumerate(estimates)
        )
        return Formula(start=start, derivatives=derivatives)
    except ValidationError as error:
        raise ScheduleError(f"{where}: {_problem(error)}") from None


def _problem(error: ValidationError) -> str:
    """The first problem, by its place in the decisions: `orders[2]: Input should be a valid integer, got 'x'`."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] != "value_error":
        message += f", got {str(first['input'])[:60]!r}"
    return f"{where}: {message}" if where else message
