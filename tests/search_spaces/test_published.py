"""The published keys: read whole, found wherever a file keeps them, refused with the entry that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.errors import DataError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.published import is_published, read_published
from fewstep.search_spaces.schedule.published_files import find_published, plain, read_json

VECTORS = Path(__file__).parents[1] / "data" / "usf_vectors.json"
NO_CORRECTOR = {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}


def estimate(*points: int, relaxation: str | None = None, coefficient: float | None = None) -> dict[str, Any]:
    entry = {"estimate": f"Difference_{len(points)}", "active_points": list(points), "relaxation": relaxation}
    return entry if coefficient is None else entry | {"relaxation_coefficient": coefficient}


def corrector(kind: str, *points: tuple[int, ...]) -> dict[str, Any]:
    derivatives = [estimate(*p) for p in points]
    return {"type": kind, "start_point": -2, "taylor_order": len(points) + 1, "derivative_type": derivatives}


def decisions(**changes: Any) -> dict[str, Any]:
    """Four steps with every kind of decision."""
    return {
        "timesteps": [1.0, 0.7, 0.4, 0.2, 0.001],
        "orders": [1, 2, 3, 2],
        "prediction_types": ["noise_prediction", "dpmsolver_v3_prediction", "data_prediction", "data_prediction"],
        "start_points": [-1, -1, -1, -1],
        "derivative_types": [
            [],
            [estimate(-2, relaxation="linear", coefficient=0.25)],
            [estimate(-3, -2, relaxation="bh2"), estimate(-3, -2)],
            [estimate(-2)],
        ],
        "corrector_types": [
            corrector("pseudo", (-1,)),
            corrector("implicit", (-3, -1), (-3, -1)),
            dict(NO_CORRECTOR),
            corrector("pseudo", (-1,)),
        ],
        "afs": "average_x0",
        "skip_coefficients": [0.9, 1.0],
    } | changes


def lambda_(t: float) -> float:
    return -5 * t - math.log(t)


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """The decisions with one entry replaced."""
    whole = json.loads(json.dumps(decisions()))
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return dict(whole)


def test_every_decision_is_read() -> None:
    schedule = read_published(decisions(), lambda_, "mine")
    assert schedule.lambdas == tuple(lambda_(t) for t in (1.0, 0.7, 0.4, 0.2, 0.001))
    assert [step.prediction for step in schedule.steps] == ["noise", "ems", "data", "data"]
    assert [step.predictor.order for step in schedule.steps] == [1, 2, 3, 2]
    first, second, third, last = schedule.steps
    assert second.predictor.derivatives[0].relaxation == "linear"
    assert second.predictor.derivatives[0].coefficient == 0.25
    assert third.predictor.derivatives[0].relaxation == "bh2"
    assert third.predictor.derivatives[1].points == (-3, -2)
    assert first.corrector is not None
    assert second.corrector is not None
    assert (first.implicit, second.implicit) == (False, True)
    assert (second.corrector.start, second.corrector.order) == (-2, 3)
    assert third.corrector is None
    assert last.corrector is None, "the published program never runs the corrector of the last step"
    assert (schedule.first_call, schedule.skips, schedule.name) == ("mean_x0", (0.9, 1.0), "mine")
    assert schedule.nfe == 4 - 1 + 1
    assert SolverSchedule.from_json(schedule.to_json()) == schedule


def test_skip_factors_that_are_all_one_are_no_decision() -> None:
    assert read_published(decisions(skip_coefficients=[1.0] * 15), lambda_).skips == ()
    assert read_published(decisions(skip_coefficients=None), lambda_).skips == ()


@pytest.mark.parametrize("key", ["timesteps", "orders", "prediction_types", "derivative_types", "corrector_types"])
def test_a_missing_key_is_named(key: str) -> None:
    rest = {name: value for name, value in decisions().items() if name != key}
    assert not is_published(rest)
    with pytest.raises(ScheduleError, match=f"'{key}' is missing"):
        read_published(rest, lambda_)


WRONG: list[tuple[list[Any], Any, str]] = [
    (["orders", 2], 2, r"orders\[2\] is 2, but derivative_types\[2\] holds 2"),
    (["orders", 1], "two", r"orders\[1\].*'two'"),
    (["orders"], [1, 2, 3], r"4 steps|3 steps"),
    (["timesteps"], [1.0, 0.5], "2 timesteps"),
    (["timesteps", 2], 0.8, r"timesteps\[2\] = 0\.8 comes after 0\.7"),
    (["timesteps", 2], math.nan, r"timesteps\[2\]"),
    (["timesteps", 4], -0.1, r"timesteps\[4\] = -0\.1"),
    (["prediction_types", 0], "score", r"prediction_types\[0\] is 'score'.*noise_prediction"),
    (["afs"], "mean", r"afs is 'mean'.*average_x0"),
    (["start_points"], [-1], "start_points"),
    (["start_points", 0], 0, r"derivative_types\[0\]"),
    (["derivative_types", 1, 0, "relaxation"], "square", r"derivative_types\[1\]\[0\]\.relaxation is 'square'"),
    (["derivative_types", 1, 0, "active_points"], [], r"derivative_types\[1\].*active points"),
    (["derivative_types", 1, 0, "active_points"], [-4], r"steps\[1\] reaches back"),
    (["derivative_types", 2, 1, "active_points"], [-2], r"derivative_types\[2\].*derivative 2"),
    (["derivative_types", 2, 1], {"relaxation": None}, r"derivative_types\[2\]\[1\]\.active_points"),
    (["derivative_types", 1, 0, "relaxation_coefficient"], math.inf, r"derivative_types\[1\]\[0\]"),
    (["corrector_types", 0], "pseudo", r"corrector_types\[0\]"),
    (["corrector_types", 0, "type"], "explicit", r"corrector_types\[0\] is 'explicit'.*implicit"),
    (["corrector_types", 0, "start_point"], None, r"corrector_types\[0\] is 'pseudo' without"),
    (["corrector_types", 1, "taylor_order"], 2, r"corrector_types\[1\]: taylor_order is 2"),
    (["corrector_types", 1, "derivative_type", 0, "active_points"], [-2, -1], r"corrector_types\[1\].*start point"),
    (["skip_coefficients", 1], "all", r"factors\[1\].*'all'"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG, ids=lambda v: str(v)[:40])
def test_a_wrong_entry_is_named(path: list[Any], value: Any, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        read_published(changed(path, value), lambda_)


def test_what_the_time_says_is_passed_on_with_the_entry() -> None:
    def limited(t: float) -> float:
        if t < 0.01:
            raise ScheduleError("too clean")
        return lambda_(t)

    with pytest.raises(ScheduleError, match=r"timesteps\[4\] = 0\.001: too clean"):
        read_published(decisions(), limited)


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda d: d, [""]),
        (lambda d: [d, np.float64(6.04)], ["[0]"]),
        (
            lambda d: {"cases": [{"decisions": d}, {"decisions": decisions(afs=None)}]},
            ["cases[0].decisions", "cases[1].decisions"],
        ),
        (lambda d: {5: [(d, 1.0)], "other": 3}, ["5[0][0]"]),
    ],
)
def test_decisions_are_found_however_they_are_wrapped(wrap: Callable[[Any], Any], where: list[str]) -> None:
    arrays = decisions(timesteps=np.array(decisions()["timesteps"]), skip_coefficients=np.array([0.9, 1.0]))
    found = find_published(wrap(arrays), "file")
    assert list(found) == where
    assert read_published(found[where[0]], lambda_) == read_published(decisions(), lambda_)


def test_content_without_decisions_is_refused_with_what_it_is() -> None:
    for content, words in (({"weights": 1}, "a mapping of weights"), ([1, 2], "a list of 2"), (3, "a int")):
        with pytest.raises(DataError, match=words):
            find_published(content, "file")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(DataError, match="no published schedule"):
        find_published(loop, "file")


def test_incomplete_decisions_are_found_so_that_the_missing_key_can_be_named() -> None:
    (found,) = find_published([{"timesteps": [1.0, 0.1], "orders": [1]}], "file").values()
    with pytest.raises(ScheduleError, match="'prediction_types' is missing"):
        read_published(found, lambda_)


def test_plain_values_are_python_values() -> None:
    value = plain({"a": np.float32(0.5), "b": (np.arange(2), [np.int64(3)])})
    assert value == {"a": 0.5, "b": [[0, 1], [3]]}
    assert type(value["a"]) is float


def test_vectors_hold_decisions_and_broken_json_is_named(tmp_path: Path) -> None:
    found = find_published(read_json(VECTORS), "vectors")
    cases = json.loads(VECTORS.read_text())["cases"]
    assert list(found.values()) == [case["decisions"] for case in cases]
    (tmp_path / "torn.json").write_text('{"timesteps": [1.0,')
    for name in ("torn.json", "absent.json"):
        with pytest.raises(DataError, match=name):
            read_json(tmp_path / name)
