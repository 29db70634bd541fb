"""SolverSchedule: exact JSON, a hash of the decisions alone, and errors that name the entry."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule, Step, load_schedule
from fewstep.search_spaces.schedule.formula import Derivative, Formula, pseudo_corrector, taylor
from fewstep.search_spaces.schedule.presets import PRESETS, SEARCH_PRESETS, intervals, preset

RELAXATIONS = ("none", "linear", "bh1", "bh2", "scale")


@st.composite
def formulas(draw: st.DrawFn, start: int, oldest: int) -> Formula:
    """Any formula from `start` whose active points lie within oldest .. -1."""
    candidates = [j for j in range(oldest, 0) if j != start]
    derivatives = []
    for k in range(1, draw(st.integers(0, min(3, len(candidates)))) + 1):
        points = draw(st.lists(st.sampled_from(candidates), min_size=k, unique=True))
        derivatives.append(
            Derivative(
                points=tuple(sorted(points)),
                relaxation=draw(st.sampled_from(RELAXATIONS)),
                coefficient=draw(st.floats(-2, 2)),
            )
        )
    return Formula(start=start, derivatives=tuple(derivatives))


@st.composite
def schedules(draw: st.DrawFn) -> SolverSchedule:
    """Any valid schedule of 1 to 6 steps, with or without a last step to sigma = 0."""
    n = draw(st.integers(1, 6))
    lambdas = [draw(st.floats(-10, 0))]
    for _ in range(n):
        lambdas.append(lambdas[-1] + draw(st.floats(2e-3, 4)))
    to_zero = draw(st.booleans())
    steps = []
    for i in range(n):
        last = i + 1 == n
        if last and to_zero:
            steps.append(Step())
            continue
        corrector = None
        if not last and draw(st.booleans()):
            corrector = draw(formulas(start=-2, oldest=-i - 2))
        start = draw(st.integers(-i - 1, -1))
        steps.append(
            Step(
                prediction=draw(st.sampled_from(["noise", "data"])),
                predictor=draw(formulas(start=start, oldest=-i - 1)),
                corrector=corrector,
            )
        )
    return SolverSchedule.build(
        lambdas=(*lambdas[:-1], math.inf) if to_zero else tuple(lambdas),
        steps=tuple(steps),
        first_call=draw(st.sampled_from(["model", "zero_x0"])),
        name=draw(st.text(max_size=5)),
    )


@given(schedules(), st.sampled_from([None, 2]))
@settings(deadline=None)
def test_json_gives_the_schedule_back_exactly(schedule: SolverSchedule, indent: int | None) -> None:
    text = schedule.to_json(indent=indent)
    back = SolverSchedule.from_json(text)
    assert back == schedule
    assert back.lambdas == schedule.lambdas  # bit for bit, inf included
    assert back.to_json(indent=indent) == text
    # Any JSON reader can read it: inf is written as a string, not as a bare word.
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@given(schedules(), st.text(), st.dictionaries(st.text(), st.integers()))
@settings(deadline=None)
def test_hash_is_of_the_decisions_alone(schedule: SolverSchedule, name: str, provenance: dict[str, int]) -> None:
    other = schedule.model_copy(update={"name": name, "provenance": provenance})
    assert other.hash == schedule.hash == SolverSchedule.from_json(schedule.to_json()).hash
    assert len(schedule.hash) == 16
    assert int(schedule.hash, 16) >= 0


def test_hash_ignores_the_sign_of_zero() -> None:
    def zero(value: float) -> SolverSchedule:
        formula = Formula(
            derivatives=(Derivative(points=(-2,), relaxation="linear", coefficient=value),),
        )
        return SolverSchedule.build(lambdas=(-2, value, 2), steps=(Step(), Step(predictor=formula)))

    assert zero(0.0) == zero(-0.0)
    assert zero(0.0).hash == zero(-0.0).hash


BASE: dict[str, Any] = {
    "lambdas": [-5.0, -2.0, 0.5, 3.0],
    "steps": [
        {"corrector": {"start": -2, "derivatives": [{"points": [-1]}]}},
        {"predictor": {"derivatives": [{"points": [-2], "relaxation": "linear", "coefficient": 0.1}]}},
        {"predictor": {"derivatives": [{"points": [-3, -2]}, {"points": [-3, -2]}]}},
    ],
    "first_call": "model",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """BASE with the entry at the dotted path replaced."""
    fields: dict[str, Any] = json.loads(json.dumps(BASE))
    at: Any = fields
    *parents, leaf = [int(p) if p.lstrip("-").isdigit() else p for p in path.split(".")]
    for key in parents:
        at = at[key]
    at[leaf] = value
    return fields


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lambdas.1", -2.0 + 1e-9),
        ("lambdas.3", 3.1),
        ("first_call", "zero_x0"),
        ("steps.0.prediction", "noise"),
        ("steps.0.corrector", None),
        ("steps.0.corrector.derivatives", []),
        ("steps.0.corrector.derivatives.0.relaxation", "bh2"),
        ("steps.1.predictor.start", -2),
        ("steps.1.predictor.derivatives", []),
        ("steps.1.predictor.derivatives.0.relaxation", "scale"),
        ("steps.1.predictor.derivatives.0.coefficient", 0.1 + 1e-10),
        ("steps.2.predictor.derivatives.0.points", [-2]),
        ("steps.2.predictor.derivatives.0.points", [-2, -3]),
    ],
)
def test_hash_tells_every_decision_apart(path: str, value: Any) -> None:
    fields = changed(path, value)
    if path == "steps.1.predictor.start":
        fields["steps"][1]["predictor"]["derivatives"][0]["points"] = [-1]
    assert SolverSchedule.build(**fields).hash != SolverSchedule.build(**BASE).hash


@given(schedules(), schedules())
@settings(deadline=None)
def test_equal_hash_means_equal_decisions(a: SolverSchedule, b: SolverSchedule) -> None:
    same = a.model_copy(update={"name": ""}) == b.model_copy(update={"name": ""})
    close = all(math.isclose(x, y, rel_tol=1e-11) for x, y in zip(a.lambdas, b.lambdas, strict=False))
    assert (a.hash == b.hash) == same or close


BAD = [
    (changed("lambdas.2", -3.0), "lambdas[2] = -3"),  # out of order
    (changed("lambdas.2", -2.0), "lambdas[2] = -2"),  # twice the same
    (changed("lambdas.1", math.nan), "lambdas[1] is nan"),
    (changed("lambdas.1", math.inf), "lambdas[1] is inf"),
    (changed("lambdas.3", -math.inf), "lambdas[3] is -inf"),
    (changed("lambdas.0", "soon"), "lambdas.0: ... 'soon'"),
    (changed("lambdas", [-5.0, 3.0]), "3 steps need 4 lambdas, got 2"),
    (changed("lambdas", [-5.0]), "lambdas: ... [-5.0]"),
    (changed("steps", []), "steps: ... []"),
    (changed("speed", 3), "speed: ... 3"),
    (changed("steps.1.skip", 0.5), "steps.1.skip: ... 0.5"),
    (
        changed("steps.1.predictor.derivatives.0.colour", "red"),
        "steps.1.predictor.derivatives.0.colour ... 'red'",
    ),
    (changed("schema_version", 2), "schema_version: ... 2"),
    (changed("first_call", "mean"), "first_call: ... 'mean'"),
    (changed("steps.0.prediction", "v"), "steps.0.prediction: ... 'v'"),
    (changed("steps.1.predictor.derivatives.0.relaxation", "bh3"), "relaxation: ... 'bh3'"),
    (changed("steps.1.predictor.derivatives.0.coefficient", math.nan), "coefficient: ... nan"),
    (changed("steps.1.predictor.derivatives.0.coefficient", math.inf), "coefficient: ... inf"),
    (changed("steps.1.corrector", {"start": -1}), "steps[1] starts at -1"),
    (changed("steps.1.corrector", {"start": -4}), "steps[1] starts at -4"),
    (changed("steps.0.predictor", {"start": -2}), "steps[0] reaches back to point -2"),
    (changed("steps.1.predictor", {"derivatives": [{"points": [-3]}]}), "steps[1] reaches back to point -3"),
    (changed("steps.1.predictor.start", 0), "steps.1.predictor.start: ... 0"),
    (changed("steps.1.predictor.derivatives.0.points", []), "steps.1.predictor.derivatives.0: ... ()"),
    (changed("steps.1.predictor.derivatives.0.points", [0]), "steps.1.predictor.derivatives.0: ... (0,)"),
    (changed("steps.1.predictor.derivatives.0.points", [-2, -2]), "derivatives.0: ... (-2, -2)"),
    (
        changed("steps.1.predictor.derivatives.0.points", [-1]),
        "steps.1.predictor: ... -1",
    ),  # the start itself
    (changed("steps.2.predictor.derivatives.1.points", [-2]), "steps.2.predictor: derivative 2 ... (-2,)"),
    (changed("lambdas.3", "inf"), "steps[2] goes to lambda = inf with order 3"),
]
CORRECTED = changed("steps.2", {"corrector": {"start": -2}})
CORRECTED["lambdas"][-1] = "inf"
BAD.append((CORRECTED, "steps[2]"))  # what would the corrector's call be made at?


@pytest.mark.parametrize(("fields", "told"), BAD, ids=[told for _, told in BAD])
def test_mistakes_are_one_line_with_entry_and_value(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ScheduleError) as built:
        SolverSchedule.build(**fields)
    with pytest.raises(ScheduleError) as read:
        SolverSchedule.from_json(json.dumps(fields))
    for caught in (built, read):
        message = str(caught.value)
        assert "\n" not in message
        at = 0
        for part in told.split("..."):
            at = message.find(part.strip(), at)
            assert at >= 0, f"{part.strip()!r} is not named in {message!r}"
        assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_noise_step_cannot_reach_sigma_zero() -> None:
    fields = changed("steps.2", {"prediction": "noise"}) | {"lambdas": [-5, -2, 0.5, math.inf]}
    with pytest.raises(ScheduleError, match=r"steps\[2\] goes to lambda = inf .* noise"):
        SolverSchedule.build(**fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"inf"', "null", "\x00", '{"lambdas": [1, 2'])
def test_text_that_is_no_schedule(text: str) -> None:
    with pytest.raises(ScheduleError, match="not a valid solver schedule") as caught:
        SolverSchedule.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(ScheduleError) as caught:
        SolverSchedule.build(**changed("first_call", "x\n" * 10_000))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_load_schedule(tmp_path: Path) -> None:
    schedule = preset("unipc-3-bh2", [-5, -3, -1, 1, math.inf])
    path = tmp_path / "schedule.json"
    path.write_text(schedule.to_json(indent=2))
    assert load_schedule(path) == load_schedule(str(path)) == schedule


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b'{"lambdas": [NaN, 1], "steps": [{}]}'])
def test_load_schedule_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScheduleError, match=r"bad\.json") as caught:
        load_schedule(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScheduleError, match="cannot read schedule"):
        load_schedule(tmp_path)


@given(schedules())
@settings(deadline=None)
def test_nfe_counts_denoiser_calls(schedule: SolverSchedule) -> None:
    saved = 1 if schedule.first_call == "zero_x0" else 0
    assert schedule.nfe == len(schedule.steps) - saved


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_presets_make_the_calls_that_they_say(name: str, steps: int) -> None:
    for end in (3.0, math.inf):
        schedule = preset(name, [*(-5 + 7 * i / steps for i in range(steps)), end])
        assert intervals(name, schedule.nfe, to_zero=math.isinf(end)) == steps
        assert schedule.nfe == (2 * steps - math.isinf(end) if name.startswith("heun") else steps)
        assert schedule.name == name


@pytest.mark.parametrize("name", SEARCH_PRESETS)
def test_a_search_starts_from_data_prediction(name: str) -> None:
    schedule = preset(name, [-5.0, -2.0, 0.0, 2.0, math.inf])
    assert {step.prediction for step in schedule.steps} == {"data"}


@given(st.integers(1, 5), st.integers(0, 5))
@settings(deadline=None)
def test_taylor_has_the_order_asked_for(order: int, points: int) -> None:
    formula = taylor(order, points or None, "linear", 0.2)
    assert formula.order == order
    assert [d.relaxation for d in formula.derivatives] == ["linear", "none", "none", "none"][: order - 1]
    assert all(d.points[-1] == -2 for d in formula.derivatives)


@given(st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None)
def test_pseudo_corrector_is_one_order_higher_where_history_allows(order: int, available: int) -> None:
    formula = pseudo_corrector(order, available, "bh1")
    assert formula.start == -2
    assert formula.order == min(order, available) + 1
    assert all(d.points[-1] == -1 and -2 not in d.points for d in formula.derivatives)
    assert formula.derivatives[0].relaxation == ("bh1" if formula.order == 2 else "none")
