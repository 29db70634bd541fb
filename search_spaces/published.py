"""Read the decisions of a schedule in the published USF program's own keys.

Keys: `timesteps` (n + 1, falling, t = 1 is noise), and per step `orders`, `prediction_types`, `start_points`,
`derivative_types`, `corrector_types`; `afs` says what becomes of the first call. A pseudo corrector on the
last step is listed there but never run, so it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewstep.errors import ScheduleError
from fewstep.search_spaces.formula import Derivative, Formula
from fewstep.search_spaces.schedule import SolverSchedule, Step

PREDICTIONS = {"noise_prediction": "noise", "data_prediction": "data", "dpmsolver_v3_prediction": "ems"}
RELAXATIONS = {None: "none", "linear": "linear", "bh1": "bh1", "bh2": "bh2", "dpmsolver-2": "bh2"}
FIRST_CALLS = {"no_afs": "model", None: "model", "zero_x0": "zero_x0", "average_x0": "mean_x0", "mean_x0": "mean_x0"}
CORRECTORS = ("no_corrector", "pseudo", "implicit")
REQUIRED = ("timesteps", "orders", "prediction_types", "derivative_types", "corrector_types")
SKIPS = ("skip_coefficients", "skip_coeffs", "skip_coef")


def is_published(value: Any) -> bool:
    """Whether a value looks like one schedule's decisions."""
    return isinstance(value, Mapping) and all(key in value for key in REQUIRED)


def read_published(decisions: Mapping[str, Any], to_lambda: Callable[[float], float], name: str = "") -> SolverSchedule:
    """The schedule that the published keys describe; `to_lambda` turns t in (0, 1] into lambda.

    Raises ScheduleError that names the key and the step that cannot be read.
    """
    missing = [key for key in REQUIRED if key not in decisions]
    if missing:
        raise ScheduleError(f"not a published schedule: the key {missing[0]!r} is missing")
    n = len(decisions["orders"])
    lengths = {key: len(decisions[key]) for key in REQUIRED if key != "timesteps"}
    wrong = [key for key, length in lengths.items() if length != n]
    if wrong or len(decisions["timesteps"]) != n + 1:
        raise ScheduleError(
            f"a published schedule of {n} steps has {len(decisions['timesteps'])} timesteps and {lengths}: "
            f"expected {n + 1} timesteps and {n} of everything else"
        )
    starts = decisions.get("start_points") or [-1] * n
    steps = [_step(decisions, i, int(starts[i]), last=i + 1 == n) for i in range(n)]
    skips = next((decisions[key] for key in SKIPS if decisions.get(key) is not None), ())
    return SolverSchedule.build(
        lambdas=tuple(to_lambda(float(t)) for t in decisions["timesteps"]),
        steps=tuple(steps),
        first_call=_one_of(FIRST_CALLS, decisions.get("afs"), "afs"),
        skips=tuple(float(v) for v in skips),
        name=name,
    )


def _one_of(table: Mapping[Any, str], value: Any, key: str) -> str:
    if value not in table:
        raise ScheduleError(f"{key} is {value!r}: known are {', '.join(str(k) for k in table)}")
    return table[value]


def _step(decisions: Mapping[str, Any], i: int, start: int, last: bool) -> Step:
    corrector = decisions["corrector_types"][i]
    kind = corrector["type"]
    if kind not in CORRECTORS:
        raise ScheduleError(f"corrector_types[{i}] is {kind!r}: known are {', '.join(CORRECTORS)}")
    corrected = kind != "no_corrector" and not last
    order = int(decisions["orders"][i])
    derivatives = _derivatives(decisions["derivative_types"][i], f"derivative_types[{i}]")
    if order != len(derivatives) + 1:
        raise ScheduleError(f"orders[{i}] is {order}, but derivative_types[{i}] holds {len(derivatives)} derivatives")
    formula = None
    if corrected:
        found = _derivatives(corrector["derivative_type"], f"corrector_types[{i}]")
        formula = Formula(start=int(corrector["start_point"]), derivatives=found)
    return Step(
        prediction=_one_of(PREDICTIONS, decisions["prediction_types"][i], f"prediction_types[{i}]"),
        predictor=Formula(start=start, derivatives=derivatives),
        corrector=formula,
        implicit=corrected and kind == "implicit",
    )


def _derivatives(entries: Sequence[Mapping[str, Any]], where: str) -> tuple[Derivative, ...]:
    return tuple(
        Derivative(
            points=tuple(int(p) for p in entry["active_points"]),
            relaxation=_one_of(RELAXATIONS, entry["relaxation"], f"{where}: relaxation"),
            coefficient=float(entry.get("relaxation_coefficient") or 0.0),
        )
        for entry in entries
    )
