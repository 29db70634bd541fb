"""`--metric`, given once or more: what it takes, what it refuses, and that nothing of it is dropped."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline import baseline
from fewstep.pipeline.baseline_settings import BaselineSettings
from fewstep.pipeline.campaign import Campaign
from fewstep.pipeline.dependencies import dependencies
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.forecast import calls_at_most
from fewstep.pipeline.measured import rung_name
from fewstep.pipeline.policies.halving import HalvingPolicy
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.settings import STORED, SearchSettings
from fewstep.pipeline.stages.preset_order import Known, Look, next_best
from fewstep.pipeline.study import Study
from fewstep.pipeline.study_file import read_study_file
from fewstep.tasks.measured_settings import MeasuredSettings
from fewstep.tasks.work import Subject

MODEL = {"model": "digits-ddpm"}


def test_one_metric_is_a_list_of_one_and_stored_studies_have_it_as_text() -> None:
    plain = SearchSettings.build(**MODEL)
    assert plain.metric == ("frechet",)
    stored = json.loads(plain.model_dump_json()) | {"metric": "frechet"}
    assert SearchSettings.model_validate(stored, context={STORED: True}) == plain
    several = SearchSettings.build(**MODEL, metric=["kid", "frechet"])
    assert (several.objective, several.metric) == ("kid", ("kid", "frechet"))
    assert SearchSettings.model_validate_json(several.model_dump_json()) == several


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": ()}, "at least one metric"),
        ({"metric": ("kid", "kid")}, "'kid' is given twice"),
        ({"metric": ("frechet", "distance")}, "does not stand alone"),
        ({"metric": "nobodys"}, "unknown metric 'nobodys'"),
        ({"metric": "kid", "refine": 0.3}, "descends the Frechet distance"),
        ({"metric": "kid", "refine": 0.3, "refine_to": "reference"}, "descends the Frechet distance"),
        ({"metric": "kid", "surrogate": "encoder"}, "learns logarithms"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SearchSettings.build(**MODEL, **fields)


def test_tuning_is_off_where_it_would_descend_something_else_and_that_is_told() -> None:
    problem = ScheduleProblem(SearchSettings.build(**MODEL, metric=("kid", "frechet")))
    assert problem.settings.refine == 0
    assert "compared by kid" in problem.notes["tuning"]
    assert "tuning" not in ScheduleProblem(SearchSettings.build(**MODEL, metric=("frechet", "kid"))).notes
    # By a distance to the teacher schedules are tuned whatever they are compared by.
    network = SearchSettings.build(**MODEL, metric="kid", refine=0.3, refine_to="network")
    assert ScheduleProblem(network).settings.refine == 0.3


def test_what_brings_its_own_features_is_screened_by_itself(tmp_path: Path) -> None:
    given = SearchSettings.build(**MODEL, metric=f"scorer:{tmp_path}/mine.py:score", budget=3_000_000)
    assert ScheduleProblem(given).settings.screen == "frechet"
    assert ScheduleProblem(SearchSettings.build(**MODEL, metric="kid", budget=3_000_000)).settings.screen == "auto"


def test_a_forecast_counts_every_metric_of_the_report() -> None:
    def reported(*metrics: str) -> int:
        settings = SearchSettings.build(**MODEL, metric=metrics, report_images=1000, refine=0, budget=1_000_000)
        return calls_at_most(ScheduleProblem(settings))["report_calls_at_most"]

    once = reported("frechet")
    assert reported("frechet", "kid") == 2 * once
    assert reported("frechet", "perceptual") == 2 * once + 64 * 1000


def test_a_signed_metric_is_minimised_by_differences() -> None:
    """A ratio of figures that may be 0 or below would order them at random."""
    settings = ScheduleProblem(SearchSettings.build(**MODEL, metric="kid", nfes=(3,))).settings

    class Tried:
        def __init__(self, value: float) -> None:
            self.candidate = type("Candidate", (), {"nfe": 3})()
            self._value = value

        def value(self, rung: object) -> float:
            return self._value

    policy = HalvingPolicy(settings, [])
    policy._scale[3] = 0.2
    search: Any = type("Search", (), {"ladder": type("Ladder", (), {"main": None})()})()
    values = [-0.4, -0.1, 0.0, 1e-15, 0.3]
    found = [policy.objectives(search, Tried(v)) for v in values]  # type: ignore[arg-type]
    assert found == [pytest.approx((v - 0.2,)) for v in values]


def test_presets_are_ordered_by_figures_below_zero_too() -> None:
    point: Any = None
    table = [Known(f"{s}/{g}", s, g, False, point) for s in "abc" for g in "xyz"]
    worth = {"a": 0.0, "b": 2.0, "c": 1.0, "x": 0.0, "y": -3.0, "z": 1.0}
    looks = [Look(k, 3, worth[k.solver] + worth[k.grid]) for k in table if "a" in k.origin or "x" in k.origin]
    left = [k for k in table if k not in [look.known for look in looks]]
    assert next_best(left, 3, looks, signed=True).origin == "c/y"


def test_values_of_metrics_do_not_depend_on_one_another(tmp_path: Path) -> None:
    """Two metrics that take the reference in two ways, or two scorers, are no change of one thing."""
    code = "def one(i, p):\n    return i.mean((1, 2, 3))\ndef two(i, p):\n    return -i.mean((1, 2, 3))\n"
    (tmp_path / "mine.py").write_text(code)
    scorers = [f"scorer:{tmp_path}/mine.py:{name}" for name in ("one", "two")]
    evaluator = Campaign(Subject("digits-ddpm"), tmp_path, ExecutionSettings()).evaluator()
    metrics = ["frechet", "kid", "cmmd", *scorers]
    together = dependencies(evaluator, metrics)
    for metric in metrics:
        assert dependencies(evaluator, [metric]).items() <= together.items()


def test_rungs_are_named_by_metric_and_features() -> None:
    assert rung_name("kid") == "measured-kid"
    assert rung_name("kid:/models/dino v2/") == "measured-kid-dino-v2"
    assert rung_name("scorer:mine:score") == "measured-scorer-mine-score"


def test_a_study_file_says_places_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    (tmp_path / "mine.py").touch()
    (tmp_path / "kid").touch()
    metrics = ["kid:net.pt", "scorer:mine.py:score", "frechet:inception", "kid"]
    file = tmp_path / "study.toml"
    file.write_text(f'model = "digits-ddpm"\nfeatures = "mine.py:make"\nmetric = {json.dumps(metrics)}\n')
    fields = read_study_file(file)
    assert fields["features"] == f"{tmp_path}/mine.py:make"
    assert fields["metric"][:3] == (f"kid:{tmp_path}/net.pt", f"scorer:{tmp_path}/mine.py:score", "frechet:inception")
    file.write_text('model = "digits-ddpm"\nmetric = "kid:net.pt"\n')
    assert read_study_file(file)["metric"] == (f"kid:{tmp_path}/net.pt",)


def test_a_teacher_is_for_metrics_that_have_pupils() -> None:
    with pytest.raises(ConfigurationError, match="leave --teacher away"):
        MeasuredSettings.build(**MODEL, teacher="ddim/uniform-t@20")
    assert MeasuredSettings.build(**MODEL, teacher="ddim/uniform-t@20", metric="perceptual").is_taught


# -- the command line -------------------------------------------------------------------------------------


def test_each_metric_that_is_given_is_measured(run: Callable[..., Any], toy: Path) -> None:
    point = ("--model", toy, "--schedule", "ddim/uniform-t@2", "--images", 250, "--reference", "digits")
    found = run("evaluate", *point, "--metric", "kid", "--metric", "1e3", "--json")
    found.refused("unknown metric '1e3'", "precision")
    asked = ("--metric", "kid,frechet", "--metric", "precision", "--metric", "recall")
    found = run("evaluate", *point, *asked, "--json").json
    assert [found["metric"], *(o["metric"] for o in found["others"])] == [
        "kid-toy",
        "fid-toy",
        "1-precision-toy",
        "1-recall-toy",
    ]
    shares = {name: v for o in found["others"] for name, v in o.get("figures", {}).items()}
    assert shares == pytest.approx({n: 1 - found["others"][i]["value"] for i, n in ((1, "precision"), (2, "recall"))})
    told = run("evaluate", *point, "--metric", "recall").out.splitlines()
    assert [line.split()[0] for line in told] == ["1-recall-toy", "recall"]


def test_two_schedules_are_compared_by_several_metrics(run: Callable[..., Any], toy: Path) -> None:
    pair = ("--model", toy, "--first", "ddim/uniform-t@1", "--second", "ddim/uniform-t@2", "--reference", "digits")
    few = ("--images", 750, "--teacher", "ddim/uniform-t@3")
    rows = run("compare", *pair, *few, "--metric", "kid", "--metric", "perceptual", "--json").json["rows"]
    assert [(r["metric"], r["method"]) for r in rows] == [
        (m, side) for m in ("kid-toy", "perceptual-toy") for side in ("first", "second", "difference")
    ]
    for first, second, apart in (rows[:3], rows[3:]):
        assert apart["value"] == pytest.approx(first["value"] - second["value"])
        assert apart["low"] < apart["value"] < apart["high"]
    run("compare", *pair, "--images", 750, "--metric", "recall").refused("no paired difference")
    run("compare", *pair, "--images", 750, "--metric", "perceptual:nothing").refused("unknown features 'nothing'")


def test_a_baseline_measures_the_best_grids_by_the_other_metrics(run: Callable[..., Any], toy: Path) -> None:
    fields = {"model": str(toy), "reference": "digits", "presets": ("ddim",), "grids": ("uniform-t",), "nfes": (2,)}
    sizes = {"screen_images": 40, "report_images": 50, "teacher": "ddim/uniform-t@3"}
    settings = BaselineSettings.build(**fields, **sizes, metric=("kid", "precision"))
    found = baseline.run(settings, Path("base"), ExecutionSettings(executor="in-process"))
    assert {r.metric for r in (*found.screened, *found.reported)} == {"kid-toy"}
    measured = [("1-precision-toy", "ddim"), ("1-precision-toy", "teacher")]
    assert [(r.metric, r.method) for r in found.measured] == measured
    asked = ["--model", toy, "--reference", "digits", "--presets", "ddim", "--grids", "uniform-t", "--nfe", 2]
    asked += ["--screen-images", 40, "--report-images", 50, "--teacher", "ddim/uniform-t@3", "--out", "base"]
    told = run("baseline", *asked, "--metric", "kid", "--metric", "precision", "--partial", "--json").json
    assert told["measured"] == [vars(row) for row in found.measured]
    lines = [line for line in Path("base/metrics.csv").read_text().splitlines() if not line.startswith("#")]
    assert [(row["metric"], row["method"]) for row in csv.DictReader(lines)] == measured


def test_settings_of_a_baseline_have_a_metric() -> None:
    settings = BaselineSettings.build(model="digits-ddpm", metric=("kid", "frechet"))
    rungs: Sequence[Any] = (*settings.rungs, *settings.measured_rungs)
    assert [(r.name, r.metric) for r in rungs] == [
        ("screen", "kid"),
        ("report", "kid"),
        ("measured-frechet", "frechet"),
    ]


def test_a_finished_report_is_measured_by_more(run: Callable[..., Any], toy: Path) -> None:
    settings = SearchSettings.build(
        model=str(toy), reference="digits", nfes=(2,), budget=9000, screen="frechet", refine=0, grids=("uniform-t",),
        look_images=64, frechet_images=250, report_images=250,
    )  # fmt: skip
    here = ExecutionSettings(executor="in-process")
    study = Study(Path("runs/toy"), settings)
    asked = ("report", "--out", "runs/toy", "--executor", "in-process", "--metric", "kid", "--json")
    outcome = study.run(here, "c")
    found = run(*asked).json
    assert found["rows"] == [vars(row) for row in outcome.rows]
    assert [(r["method"], r["schedule"]) for r in found["measured"]] == [(r.method, r.schedule) for r in outcome.rows]
    assert {r["metric"] for r in found["measured"]} == {"kid-toy"}
    count = len(study.records())
    assert run(*asked).json == found | {"evaluations": count}
    assert len(study.records()) == count
    run("report", "--out", "runs/toy", "--workers", 2).refused("nothing is run without --metric")


def test_an_option_of_many_values_takes_them_together_or_one_by_one(run: Callable[..., Any]) -> None:
    asked = ("search", "--model", "digits-ddpm", "--print")
    apart = run(*asked, "--nfe", 3, "--nfe", "5-6", "--metric", "kid", "--metric", "frechet")
    assert apart.out == run(*asked, "--nfe", "3,5-6", "--metric", "kid,frechet").out
    assert "nfes = [3, 5, 6]" in apart.out
    assert 'metric = ["kid", "frechet"]' in apart.out
    run(*asked, "--metric", "kid", "--metric", "kid").refused("'kid' is given twice")
