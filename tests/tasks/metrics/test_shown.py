"""Metrics of models that are shown something: parts add up, and the figure is that of the images themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import as_point
from fewstep.tasks.metrics.holes import HiddenError
from fewstep.tasks.metrics.layouts import LayoutDisagreement
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import GROUP, Subject, Task, WorkerSettings
from fewstep.tasks.worker import Worker

EDGES = (-0.5, 0.5)
INPAINT = ConditionConfig(kind="inpaint", dataset="digits", channels=3)
LAYOUT = ConditionConfig(kind="layout", dataset="digits", channels=5, thresholds=EDGES)
COUNT = 2 * GROUP + 30


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> dict[str, Worker]:
    root = tmp_path_factory.mktemp("shown")
    made = {c.kind: make_tiny_flow(root / c.kind, c, features=False) for c in (INPAINT, LAYOUT)}
    asked = Conditions(source="test")
    return {kind: Worker(WorkerSettings(Subject(str(path), conditions=asked))) for kind, path in made.items()}


def _point(worker: Worker) -> str:
    return as_point(preset_on_grid("unipc-2-bh2/uniform-t-zero", worker.files.noise, 3)).to_json()


@pytest.mark.parametrize(("kind", "name"), [("inpaint", "holes"), ("layout", "layouts")])
def test_parts_of_two_tasks_are_those_of_one(workers: dict[str, Worker], kind: str, name: str) -> None:
    worker = workers[kind]
    point = _point(worker)
    whole = worker.run(Task("k", name, point, 5, 0, COUNT)).parts
    halves = [p for start in (GROUP, 0) for p in worker.run(Task("k", name, point, 5, start, GROUP)).parts]
    assert [p.start for p in whole] == [0, GROUP, 2 * GROUP]
    assert [p.count for p in whole] == [GROUP, GROUP, 30]
    assert [dict(p.sums) for p in sorted(halves, key=lambda p: p.start)] == [dict(p.sums) for p in whole[:2]]


def test_the_error_in_the_holes_is_that_of_the_images(workers: dict[str, Worker]) -> None:
    worker = workers["inpaint"]
    parts = worker.run(Task("k", "holes", _point(worker), 5, 0, COUNT)).parts
    score = HiddenError(Setting(worker.settings.subject, worker.files)).score(parts, {})
    sources = worker.exact.sources
    assert sources is not None
    made, holes = worker.render(_point(worker), 5, 0, COUNT), sources.holes(range(COUNT))
    error = (made - sources.images(range(COUNT))).double().square()[holes.expand_as(made)].mean().sqrt()
    assert score.value == pytest.approx(float(error), rel=1e-9)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    # What was known is put back.
    assert score.figures["known_rms"] == 0


def test_the_disagreement_of_layouts_is_that_of_the_images(workers: dict[str, Worker]) -> None:
    worker = workers["layout"]
    parts = worker.run(Task("k", "layouts", _point(worker), 5, 0, COUNT)).parts
    score = LayoutDisagreement(Setting(worker.settings.subject, worker.files)).score(parts, {})
    sources = worker.exact.sources
    assert sources is not None
    made = layout_of(worker.render(_point(worker), 5, 0, COUNT), EDGES)
    given = layout_of(sources.images(range(COUNT)), EDGES)
    overlaps = [
        float(((made == k) & (given == k)).sum() / ((made == k) | (given == k)).sum())
        for k in range(3)
        if bool(((made == k) | (given == k)).any())
    ]
    assert score.value == pytest.approx(1 - sum(overlaps) / len(overlaps), rel=1e-6)
    assert score.figures["pixel_accuracy"] == pytest.approx(float((made == given).double().mean()))


@pytest.mark.parametrize("metric", [HiddenError, LayoutDisagreement])
def test_a_model_that_is_shown_nothing_is_refused(metric: type[HiddenError]) -> None:
    with pytest.raises(ConfigurationError, match="'plain'"):
        metric(Setting(Subject("digits-ddpm"), find_model("digits-ddpm"))).check()
