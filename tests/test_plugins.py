"""A package of somebody else's adds spaces, metrics, features, executors and tables: a file or two each, and a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import EXECUTORS, ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.plugins import Registry
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.editing.bench import make_bench
from fewstep.tasks.editing.identity import IDENTITIES
from fewstep.tasks.editing.judge import JUDGES
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.metrics.extractor import FEATURES
from fewstep.tasks.metrics.metric import METRICS
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject

PACKAGE = Path(__file__).parent / "plugin"
ROOT = Path(__file__).resolve().parent.parent
HERE = ExecutionSettings(executor="in-process")
OTHERS = ("energy", "sharpness", "nearest")
SMALL = {"distance_images": 8, "frechet_images": 250, "report_images": 750, "front": 4}


def _forget(*registries: Registry) -> None:
    """What was installed is looked up once a process."""
    for registry in registries:
        registry.__dict__.pop("_others", None)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package on the path, with its metadata, as pip would install it."""
    for path in (ROOT, PACKAGE):
        monkeypatch.syspath_prepend(str(path))
    registries = [SPACES, METRICS, FEATURES, EXECUTORS, JUDGES, IDENTITIES]
    _forget(*registries)
    yield
    monkeypatch.undo()
    _forget(*registries)


def _settings(**fields: Any) -> SearchSettings:
    base = preset_on_grid("dpmpp-2m/uniform-t", find_model("digits-ddpm").noise, 4)
    kept = {"base_schedule": base.to_json(), "nfes": (4,)} if fields.get("space") == "caching" else {}
    return SearchSettings.build(**{"model": "digits-ddpm", **SMALL, **kept, **fields})


@pytest.mark.slow
def test_what_another_package_has_makes_a_search(tmp_path: Path) -> None:
    """Its space, three metrics in its own features, and its executor."""
    study = Study(tmp_path, _settings(space="caching", metric=OTHERS, features="gradients", budget=12_000))
    outcome = study.run(ExecutionSettings(executor="processes", workers=2), "fewstep search")
    records = study.records()
    assert {r.status for r in records} == {"complete"}
    assert {r.metric for r in records} == {"teacher-distance", "energy", "neg-sharpness", "nearest"}
    assert {r.features for r in records if r.metric in ("energy", "nearest")} == {"fid-gradients"}
    # Every subset of the three calls that may reuse the bottleneck is a point of its own.
    seen = {r.candidate: parse_point(r.candidate_json) for r in records}
    assert {p.kind for p in seen.values()} == {"joint", "schedule"}
    assert len([p for p in seen.values() if p.kind == "joint"]) == 8
    # Quality and cost trade: the front runs from nothing reused to everything.
    members = json.loads((tmp_path / "front.json").read_text())["members"]
    points = [json.loads((tmp_path / m["point"]).read_text())["members"] for m in members]
    reused = [len(parts[1]["reused"]) for parts in points]
    assert len(members) >= 2
    assert [m["value"] for m in members] == sorted(m["value"] for m in members)
    assert reused == sorted(reused)
    assert {r.method for r in outcome.rows} >= {"fewstep", "full precision"}
    assert {r.metric for r in outcome.rows} == {"energy-gradients"}
    # The first is minimised; the others are measured of the same candidates.
    assert {r.metric for r in outcome.measured} == {"neg-sharpness", "nearest-gradients"}
    lines = {(r.nfe, r.method, r.schedule) for r in outcome.rows}
    assert {(r.nfe, r.method, r.schedule) for r in outcome.measured} == lines
    rows = [*outcome.rows, *outcome.measured]
    assert all(r.low is not None and r.high is not None and r.low < r.value < r.high for r in rows)
    again = Study.load(tmp_path)
    count = len(again.records())
    again.run(HERE, "fewstep search")
    assert len(again.records()) == count


def test_edits_are_judged_and_measured_by_another_package() -> None:
    way = "ddim/uniform-t@3"
    subject = EditSubject.build(
        model="digits-ddpm",
        data="digits",
        attribute="eight",
        judge="ink:0.4",
        identity="moved",
        fit_way=way,
        examples=8,
    )
    bench = make_bench(subject, None)
    step = bench.files.noise.lambda_at(500.0)
    edit = EditConfig(step=step, inversion=way, generation=way, strength_z=2.0, boundary=BoundaryConfig(images=8))
    images, originals = bench.edit("search", 6, edit), bench.originals("search", 6).images
    figures = bench.evaluate("search", 6, edit, images)
    assert figures.success.value == float(((images.mean((1, 2, 3)) + 1) / 2 > 0.4).double().mean())
    apart = [(a - originals).abs().mean((1, 2, 3)) for a in (images, bench.examples(True)[:6])]
    assert figures.identity.value == pytest.approx(float(1 - (apart[0] / apart[1].mean()).mean()), abs=1e-5)


@pytest.mark.parametrize("sampler", ["s3", "nsgaii", "tpe"])
def test_a_space_of_another_package_is_searched_together_with_schedules(tmp_path: Path, sampler: str) -> None:
    study = Study(tmp_path, _settings(space="schedule+caching", nfes=(3,), sampler=sampler, budget=9000))
    state = study.find(HERE)
    own = [t for t in state.trials.values() if not t.candidate.origin.startswith("named:")]
    assert own
    for trial in own:
        kinds = {part.kind for part in trial.candidate.point.parts}
        assert kinds == {"schedule", "caching"}
        assert trial.candidate.nfe == 3
    # A resumed search asks for what the first one would have asked for next.
    past = study.records()
    replayed, twice = (study.problem.search().replay(past) for _ in range(2))
    assert replayed.spent == twice.spent == state.spent


def test_schedules_are_searched_by_a_metric_of_another_package(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"frechet_images": 250, "look_images": 64, "report_images": 750, "screen": "frechet"}
    asked: dict[str, Any] = {"metric": OTHERS[:2], "features": "gradients", "grids": ("uniform-t",), "budget": 9000}
    study = Study(tmp_path, SearchSettings.build(model="digits-ddpm", nfes=(3,), **asked, **sizes))
    outcome = study.run(HERE, "fewstep search")
    assert {r.rung for r in study.records()} > {"report", "measured-sharpness"}
    found, *others = outcome.rows
    assert found.found
    assert found.value <= min(r.value for r in others) + 0.02
    (line,) = outcome.verdicts
    assert line.startswith("NFE 3: by energy-gradients, ")
    # What is not what was found is said beside it, on the same noise.
    apart = {r.method: r for r in outcome.measured}
    assert apart[found.method].difference is None
    for row in others:
        told = apart[row.method]
        if row.schedule != found.schedule:
            assert told.difference == pytest.approx(apart[found.method].value - told.value)
            assert told.difference_low < told.difference < told.difference_high
    assert (tmp_path / "metrics.csv").is_file()
    again = Study.load(tmp_path)
    assert again.settings == study.settings
    assert again.measured(again.state()) == outcome.measured
    assert "tuning" in again.problem.notes


def test_metrics_of_one_point_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    point = preset_on_grid("dpmpp-2m/uniform-t", find_model("digits-ddpm").noise, 4)
    subject = Subject("digits-ddpm", features="gradients")

    def value(folder: str, metric: str, images: int = 500) -> float | None:
        (record,) = evaluate(subject, [point], images, 3, tmp_path / folder, HERE, metric)
        return record.value

    alone = value("a", "frechet"), value("b", "energy")
    assert (value("c", "frechet"), value("c", "energy")) == alone
    assert (value("d", "energy"), value("d", "frechet")) == alone[::-1]
    # Parts are stored: more images compute the new ones alone, and come to the same.
    assert value("b", "energy", 1000) == pytest.approx(value("e", "energy", 1000), rel=1e-12)
    # And a metric in features of its own is the same as one in the subject's.
    assert value("f", "energy:gradients") == alone[1]
    assert value("f", "energy:classifier:auto") != alone[1]


def test_a_table_of_another_package_is_made_by_the_one_engine(tmp_path: Path) -> None:
    from benchmarks.tables.__main__ import TABLES, main

    _forget(TABLES)
    assert main(["example_orders", "--out", str(tmp_path)]) == 0
    lines = [line for line in (tmp_path / "example_orders.csv").read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert [row["preset"] for row in rows] == ["ddim", "dpmpp-2m", "dpmpp-3m"]
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    _forget(TABLES)


def test_a_name_that_nobody_offers_is_refused_with_those_that_there_are() -> None:
    registries = (SPACES, METRICS, FEATURES, JUDGES, IDENTITIES, EXECUTORS)
    names = ("caching", "energy", "gradients", "ink", "moved", "processes")
    for registry, name in zip(registries, names, strict=True):
        assert name in registry.names
        with pytest.raises(ConfigurationError, match=name):
            registry.load("nobodys")


def test_what_each_of_them_takes_is_one_file_or_two_and_one_line() -> None:
    files = {path.stem for path in (PACKAGE / "fewstep_example").glob("*.py")}
    assert files == {"space", "caching", *OTHERS, "gradients", "ink", "executor", "table"}
    lines = (PACKAGE / "fewstep_example-1.0.dist-info" / "entry_points.txt").read_text().splitlines()
    assert len([line for line in lines if "=" in line]) == 9
