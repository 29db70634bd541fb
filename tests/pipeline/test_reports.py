"""A published table says how its figures came about, not who rendered it; pictures cost nobody their results."""

from __future__ import annotations

import platform
import re
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import EvaluationError
from fewstep.pipeline.reports import pictures, provenance
from fewstep.pipeline.reports.csv import results_csv
from fewstep.pipeline.reports.pictures import Picture, sample_images, write_pictures
from fewstep.pipeline.reports.provenance import BOOTSTRAP, JACKKNIFE, NORMAL, NOT_RECORDED, WILSON, footnote, made_by
from fewstep.pipeline.reports.rows import Row
from fewstep.search_spaces.point import as_point
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import METRICS
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Task, TaskResult

ROW = Row("m", "ddim", 3, "fid-digits", 1.0, 0.5, 1.5, 1000, "s")
NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)
RECORD = EvaluationRecord(
    study="s",
    order=0,
    trial=0,
    key="k",
    candidate="c",
    candidate_json="{}",
    nfe=3,
    rung="report",
    origin="random",
    model="m",
    model_hash="h",
    features="f",
    reference="r",
    seed=0,
    images=1000,
    metric="frechet",
    value=1.0,
    low=0.5,
    high=1.5,
    denoiser_calls=3000,
    seconds=1.0,
    device="cpu",
    finished_at=NOON,
    versions={"fewstep": "0.2", "python": "3.11.7", "torch": "2.14"},
)

moments = st.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))
records = st.lists(
    st.builds(
        lambda at, images, torch, metric: replace(
            RECORD, finished_at=at, images=images, versions={"torch": torch}, metric=metric
        ),
        moments,
        st.integers(1, 10**6),
        st.sampled_from(["2.13", "2.14"]),
        st.sampled_from(["frechet", "teacher-distance"]),
    ),
    min_size=1,
    max_size=6,
)


@given(records)
def test_the_lines_tell_of_the_records_and_of_nothing_else(records: list[EvaluationRecord]) -> None:
    made = made_by(records, "fewstep report", {"report": 1})
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(platform, "machine", lambda: "another")
        elsewhere.setattr("os.cpu_count", lambda: 999)
        elsewhere.setattr(provenance, "datetime", SimpleNamespace(now=lambda zone: NOON + timedelta(days=9999)))
        assert made_by(records[::-1], "fewstep report", {"report": 1}) == made
    days = [record.finished_at.date().isoformat() for record in records]
    assert {min(days), max(days)} == set(made["date"].split(" to "))
    counts = [record.images for record in records]
    assert {min(counts), max(counts)} == {int(count) for count in made["images"].split(" to ")}
    assert all(record.versions["torch"] in made["versions"] for record in records)
    metrics = {record.metric for record in records}
    assert (JACKKNIFE in made["interval"]) == ("frechet" in metrics)
    assert (NORMAL in made["interval"]) == ("teacher-distance" in metrics)


def test_every_metric_says_what_its_intervals_are() -> None:
    for name in METRICS.names:
        metric = METRICS.load(name)
        told = made_by([replace(RECORD, metric=metric.figure)], "c", {})["interval"]
        assert told == (metric.interval or "none")
    assert made_by([replace(RECORD, metric="somebody's")], "c", {})["interval"] == NOT_RECORDED


def test_days_are_those_of_utc() -> None:
    late = replace(RECORD, finished_at=datetime(2025, 3, 4, 23, tzinfo=timezone(timedelta(hours=-5))))
    assert made_by([late], "c", {})["date"] == "2025-03-05"


def test_the_machine_is_the_one_that_records_name() -> None:
    assert made_by([RECORD], "c", {})["machine"] == f"{NOT_RECORDED}, device cpu"
    named = [replace(RECORD, versions={"machine": name}) for name in ("2 cores, x86_64", "8 cores, arm64")]
    made = made_by(named, "c", {})
    assert made["machine"] == "2 cores, x86_64, device cpu / 8 cores, arm64, device cpu"
    assert "x86_64" not in made["versions"]


def test_what_no_record_says_is_not_made_up() -> None:
    made = made_by([], "c", {})
    assert {made[name] for name in ("date", "machine", "versions", "images")} == {NOT_RECORDED}
    assert made["interval"] == "none"


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([JACKKNIFE, WILSON, NORMAL, BOOTSTRAP]), min_size=1))
def test_each_column_has_its_own_kind_of_interval(intervals: dict[str, str]) -> None:
    told = made_by([RECORD], "c", {}, intervals)["interval"].removeprefix("95%; ")
    found = {}
    for part in told.split("; "):
        columns, _, kind = part.partition(": ")
        found |= dict.fromkeys(columns.split(", "), kind)
    assert found == intervals


@given(st.text(max_size=40), st.text(max_size=40), st.none() | records)
def test_a_header_is_one_line_a_name_and_holds_no_password(
    text: str, note: str, records: list[EvaluationRecord] | None
) -> None:
    command = f"fewstep search {text} --tracking-uri http://me:hunter2@runs.example.org"
    lines = results_csv([ROW], command, {"report": 1}, {"value": note}, records).splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert len(lines) == len(header) + 2
    assert all(re.match(r"# [\w-]+: ?", line) for line in header)
    names = ["command", "date", "seeds", "machine", *(["versions", "images"] if records else []), "interval", "value"]
    assert [line[2:].partition(":")[0] for line in header] == names
    assert "hunter2" not in "".join(header)
    assert "hunter2" not in footnote(command, {"report": 1}, records=records)


# -- pictures --------------------------------------------------------------------------------------------


class Played:
    """An executor whose results are given."""

    def __init__(self, *stale: TaskResult, errors: tuple[str, ...] = ()) -> None:
        self.results, self.errors = deque(stale), deque(errors)

    def submit(self, task: Task) -> None:
        error = self.errors.popleft() if self.errors else ""
        images = None if error else np.ones((1, 1, 2, 2), np.float32)
        self.results.append(TaskResult(task, images=images, error=error))

    def next(self) -> TaskResult:
        return self.results.popleft()


POINT = as_point(preset_on_grid("ddim", find_model("digits-ddpm").noise, 3))


@pytest.mark.parametrize("error", ["EvaluationError: its steps explode", "gave up: the worker died 3 times"])
def test_pictures_that_cannot_be_made_are_an_error_of_ours_with_its_reason(error: str) -> None:
    played: Any = Played(errors=(error,))
    with pytest.raises(EvaluationError, match=f"no images of schedule .*{error}"):
        sample_images(played, POINT, 0, 1)


def test_what_an_earlier_picture_left_under_way_is_not_taken_for_this_one() -> None:
    stale = TaskResult(Task("images-other", "images", "{}", 0, 0, 1), images=np.zeros((1, 1, 2, 2), np.float32))
    played: Any = Played(stale)
    assert (sample_images(played, POINT, 0, 1) == 1).all()


def test_what_cannot_be_drawn_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    rows = [Picture(name, POINT) for name in ("found", "ddim")]
    played: Any = Played(errors=("it exploded",))
    path = write_pictures(played, rows, 0, 1, tmp_path / "deep" / "grid.png", told.append)
    assert path is not None
    assert path.is_file()
    (message,) = told
    assert "'found'" in message
    assert "it exploded" in message
    none: Any = Played(errors=("it exploded",) * 2)
    assert write_pictures(none, rows, 0, 1, tmp_path / "none.png", told.append) is None
    for error in (OSError(28, "No space left on device"), ValueError("unknown file extension")):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(pictures, "write_grid", refuse)
        assert write_pictures(none, rows, 0, 1, tmp_path / "full.png", told.append) is None
        assert str(error) in told[-1]
