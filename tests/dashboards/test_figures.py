"""Figures show every number they are given, in plotly and in files."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fewstep.dashboards.drawings import save_convergence, save_front, save_schedules
from fewstep.dashboards.figures import convergence_figure, front_figure, log_axis, schedule_figure
from fewstep.dashboards.picture import LANES, extras, lay_out, span_of, words
from fewstep.dashboards.results import FOUND, convergence, report_table
from fewstep.errors import ConfigurationError
from fewstep.search_spaces.schedule import SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import Derivative, Formula, pseudo_corrector, taylor
from fewstep.search_spaces.schedule.presets import preset


@pytest.fixture
def schedule() -> SolverSchedule:
    third = Formula(
        derivatives=(
            Derivative(points=(-3, -2)),
            Derivative(points=(-3, -2), relaxation="scale", coefficient=0.5),
        )
    )
    steps = (
        Step(prediction="noise", corrector=pseudo_corrector(1, 1, "bh1")),
        Step(predictor=taylor(2, relaxation="linear", c=-0.12)),
        Step(predictor=third),
        Step(),
    )
    return SolverSchedule.build(lambdas=(-5.0, -1.0, 0.5, 2.0, math.inf), steps=steps)


def test_the_front_has_a_line_a_method_with_its_interval_and_found_on_top(store):
    table = report_table(store, "digits")
    figure = front_figure(table)
    assert figure.data[-1].name == FOUND
    assert {trace.name for trace in figure.data} == set(table["method"])
    assert all(figure.data[-1].line.width > trace.line.width for trace in figure.data[:-1])
    found = table[table["method"] == FOUND].sort_values("nfe")
    line = figure.data[-1]
    assert list(line.x) == [3.0, 4.0, 5.0]
    np.testing.assert_allclose(line.y, found["value"])
    np.testing.assert_allclose(np.add(line.y, line.error_y.array), found["high"])
    np.testing.assert_allclose(np.subtract(line.y, line.error_y.arrayminus), found["low"])
    assert figure.layout.yaxis.type == "log"


def test_an_interval_that_reaches_zero_stays_on_the_logarithmic_axis(store):
    table = report_table(store, "digits").assign(low=-1.0)
    for trace in front_figure(table).data:
        assert np.all(np.subtract(trace.y, trace.error_y.arrayminus) > 0)
    below_zero = table.assign(value=-table["value"])
    assert front_figure(below_zero).layout.yaxis.type is None


def test_names_are_shown_as_they_are(store):
    table = report_table(store, "digits")
    table["method"] = table["method"].replace("ddim", "<b>$x$</b>")
    assert "&lt;b&gt;$x$&lt;/b&gt;" in {trace.name for trace in front_figure(table).data}


def test_convergence_lines_fall_and_reach_the_end_of_the_search(store):
    df = convergence(store, "digits")
    figure = convergence_figure(df)
    assert [trace.name for trace in figure.data] == ["NFE 3", "NFE 4", "NFE 5"]
    for trace in figure.data:
        assert trace.x[-1] == df["calls"].max()
        assert list(trace.y) == sorted(trace.y, reverse=True)


def test_the_words_over_a_step_say_what_was_decided(schedule):
    assert LANES == ("prediction", "order", "relaxation", "corrector")
    assert [words(step) for step in schedule.steps] == [
        ("noise", "1", "–", "2 bh1"),
        ("data", "2", "1−0.12h", "–"),
        ("data", "3", "×0.5 F2", "–"),
        ("data", "1", "–", "–"),
    ]
    widened = Step(predictor=taylor(2, points=2))
    assert words(widened)[1] == "2 (3 pts)"


def test_calls_stand_at_their_lambdas_and_sigma_zero_apart(schedule):
    picture = lay_out(schedule)
    assert [mark.place for mark in picture.marks[:-1]] == [-5.0, -1.0, 0.5, 2.0]
    assert picture.marks[-1].place == picture.span.zero > 2.0
    assert [mark.called for mark in picture.marks] == [True] * 4 + [False]
    assert [step.off_axis for step in picture.steps] == [False, False, False, True]
    columns = [step.column for step in picture.steps]
    np.testing.assert_allclose(np.diff(columns), np.diff(columns)[0])
    free = SolverSchedule.build(lambdas=schedule.lambdas, steps=schedule.steps, first_call="zero_x0")
    assert [mark.called for mark in lay_out(free).marks] == [False, True, True, True, False]


@pytest.mark.parametrize("nfe", [1, 2, 40])
def test_schedules_of_every_length_are_drawn(nfe, tmp_path):
    schedule = preset("dpmpp-2m", (*np.linspace(-5, 2, nfe), math.inf))
    figure = schedule_figure(schedule)
    texts = [text for trace in figure.data if trace.mode == "text" for text in trace.text]
    assert len(texts) == 4 * nfe
    assert figure.layout.xaxis.ticktext[-1] == "σ = 0"
    assert save_schedules([("one", schedule)], tmp_path / "s.png").is_file()


def test_pictures_on_one_span_can_be_compared(schedule):
    finite = preset("ddim", np.linspace(-6, 3, 4))
    span = span_of([schedule, finite])
    assert (span.low, span.high, span.has_zero) == (-6.0, 3.0, True)
    ranges = {tuple(schedule_figure(s, span).layout.xaxis.range) for s in (schedule, finite)}
    assert ranges == {span.ends}
    assert not span_of([finite]).has_zero


def test_files_hold_a_picture_and_are_equal_when_drawn_again(store, schedule, tmp_path):
    table, way = report_table(store, "digits"), convergence(store, "digits")
    for kind in ("png", "svg"):
        drawn = [
            save_front(table, tmp_path / f"front.{kind}"),
            save_convergence(way, tmp_path / f"way.{kind}"),
            save_schedules([("$one", schedule), ("two", schedule)], tmp_path / "deep" / f"schedules.{kind}"),
        ]
        for path in drawn:
            if kind == "png":
                assert np.asarray(Image.open(path).convert("L")).std() > 5
            else:
                assert ElementTree.parse(path).getroot().tag.endswith("svg")
        before = drawn[0].read_bytes()
        assert save_front(table, drawn[0]).read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_wrong_names_and_empty_lists_are_refused(store, tmp_path):
    with pytest.raises(ConfigurationError, match=r"front.bmp: name the file .png, .svg or .pdf"):
        save_front(report_table(store, "digits"), tmp_path / "front.bmp")
    with pytest.raises(ConfigurationError, match="no schedule to draw"):
        save_schedules([], tmp_path / "none.png")


def test_a_picture_names_every_decision() -> None:
    schedule = SolverSchedule.model_validate(
        {
            "lambdas": [-math.inf, -1.0, 0.5, math.inf],
            "steps": [
                {"prediction": "data"},
                {
                    "prediction": "ems",
                    "predictor": {"blend": {"points": [-1, -2], "weights": [1.5, -0.5]}},
                    "corrector": {"start": -2, "derivatives": [{"points": [-1]}]},
                    "implicit": True,
                },
                {},
            ],
            "first_call": "mean_x0",
            "guidance": 4.5,
            "skips": [0.9, 1.1],
            "threshold": {"kind": "dynamic"},
        }
    )
    picture = lay_out(schedule)
    assert "mean image" in picture.marks[0].details
    assert picture.marks[0].place < -1.0
    assert [step.off_axis for step in picture.steps] == [True, False, True]
    assert "blend of 2" in picture.steps[1].words
    assert any("implicit" in word for word in picture.steps[1].words)
    text = extras(schedule)
    for word in ("4.5", "1.10", "dynamic", "0.995"):
        assert word in text


@pytest.mark.parametrize(
    ("values", "tick"), [([0.7], "D1"), ([2.0, 9.0], "D1"), ([0.005, 0.35], "D2"), ([1e-6, 9.0], 1)]
)
def test_labels_of_a_logarithmic_axis_have_room(values, tick):
    """As many digits are told as do not run into one another, and what is alone stands amid its axis."""
    axis = log_axis(values)
    assert axis["dtick"] == tick
    low, high = axis.get("range", [math.log10(min(values)), math.log10(max(values))])
    assert low <= math.log10(min(values))
    assert math.log10(max(values)) <= high
    assert ("range" in axis) == (len(values) == 1)


def test_the_axis_of_a_front_has_room_for_intervals_that_reach_far_down(store):
    table = report_table(store, "digits")
    near = front_figure(table.assign(value=10.0, low=9.0, high=11.0)).layout.yaxis.dtick
    far = front_figure(table.assign(value=10.0, low=1e-9, high=11.0)).layout.yaxis.dtick
    assert (near, far) == ("D1", "D2")
