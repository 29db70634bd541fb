"""The seconds that evaluations took, and those that each actor worked, are all in the picture and nowhere twice."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fewstep.dashboards.web.busy import busy
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.places import Entry, Places
from fewstep.storage.records import EventRecord, StudyRecord
from fewstep.storage.store import Store


@pytest.fixture
def recorded(tmp_path: Any, make_evaluation: Any) -> Any:
    """A study of evaluations that took so many seconds and ended so many seconds after its begin."""

    def make(took: list[tuple[float, float]]) -> Entry:
        store = Store(tmp_path)
        first = make_evaluation(0, study="s")
        rows = [
            replace(
                first, order=k, key=f"k{k}", seconds=seconds, finished_at=first.finished_at + timedelta(seconds=end)
            )
            for k, (end, seconds) in enumerate(took)
        ]
        store.studies.append([StudyRecord("s", first.finished_at, "{}", "m", "h")])
        store.evaluations.append(rows)
        return Places([tmp_path]).find()[0][0]

    return make


def test_all_seconds_are_in_the_picture(recorded: Any) -> None:
    draw = np.random.default_rng(0)
    took = [(float(end), float(draw.uniform(0.1, 20.0))) for end in draw.uniform(0, 500, 200)]
    found = busy(Columns(), recorded(took), [])
    assert found is not None
    span = max(end for end, _ in took) - min(end - seconds for end, seconds in took)
    total = sum(seconds for _, seconds in took)
    assert np.mean(found.workers) * span == pytest.approx(total, rel=1e-6)
    assert found.mean == pytest.approx(total / span, rel=1e-6)
    assert (found.share, len(found.actors)) == (None, 0)


def test_two_that_work_side_by_side_are_two(recorded: Any) -> None:
    """And none is busy in between; what took no time that is known counts nothing."""
    found = busy(Columns(), recorded([(10.0, 10.0), (10.0, 10.0), (40.0, 10.0), (40.0, 0.0)]), [])
    assert found is not None
    assert found.workers[:14] == pytest.approx([2.0] * 14, abs=1e-3)
    assert found.workers[20:40] == pytest.approx([0.0] * 20, abs=1e-3)
    assert found.workers[-14:] == pytest.approx([1.0] * 14, abs=1e-3)


def test_evaluations_without_seconds_tell_nothing(recorded: Any) -> None:
    assert busy(Columns(), recorded([(1.0, 0.0), (2.0, 0.0)]), []) is None


def test_each_actor_has_the_share_that_its_driver_told(recorded: Any) -> None:
    entry = recorded([(60.0, 5.0)])
    begin = entry.record.created_at

    def event(order: int, begun: float, end: float, seconds: dict[str, float]) -> EventRecord:
        data = {"since": (begin + timedelta(seconds=begun)).isoformat(), "seconds": seconds}
        return EventRecord("s", order, "busy", "", begin + timedelta(seconds=end), json.dumps(data))

    events = [event(0, 0, 60, {"0": 30.0, "10": 60.0}), event(1, 60, 80, {"0": 10.0, "2": 0.0})]
    events += [EventRecord("s", 2, "busy", "", begin, data) for data in ("{", "[]", '{"since": 3, "seconds": {}}')]
    found = busy(Columns(), entry, events)
    assert found is not None
    assert found.actors["actor"].tolist() == ["actor 0", "actor 2", "actor 10"]
    assert found.actors["share"].tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert found.share == pytest.approx(100 / 160)
