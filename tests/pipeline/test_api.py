"""fewstep from Python: a study is searched, gone on with, opened and used; mistakes are fewstep's own errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewstep
from fewstep.errors import ConfigurationError, StorageError
from fewstep.pipeline.campaign import register
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise

SMALL: dict[str, Any] = {
    "nfe": (2, 3),
    "budget": 9_000,
    "screen": "distance",
    "refine": 0.0,
    "preset_images": 16,
    "sampler": "evolution",
    "teacher": "dpmpp-2m/uniform-t-zero@8",
    "distance_images": 16,
    "frechet_images": 250,
    "finalist_images": 500,
    "finalists": 1,
    "report_images": 750,
    "executor": "in-process",
    "progress": False,
}


@pytest.fixture(scope="module")
def study(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> fewstep.StudyView:
    return fewstep.search(toy, out=tmp_path_factory.mktemp("api") / "study", **SMALL)


def test_the_front_has_one_row_each_nfe_and_is_the_report_s(study: fewstep.StudyView) -> None:
    front, report = study.front(), study.report()
    assert front.columns.tolist() == ["nfe", "origin", "value", "low", "high", "images", "metric"]
    assert front["nfe"].tolist() == [2, 3]
    assert (front["images"] == 750).all()
    found = report[report["found"]]
    assert front["value"].tolist() == found["value"].tolist()
    assert front["origin"].tolist() == found["origin"].tolist()
    assert {"preset", "own"} <= {origin.partition(":")[0] for origin in report["origin"]}
    trials = study.trials()
    assert len(trials) == Store(study.path).evaluations.row_count()
    assert trials["order"].is_monotonic_increasing


def test_the_best_is_a_schedule_with_its_figures(study: fewstep.StudyView) -> None:
    best = study.best(nfe=3)
    row = study.front().set_index("nfe").loc[3]
    assert (best.value, best.low, best.high) == (row["value"], row["low"], row["high"])
    assert best.schedule.nfe == best.nfe == 3
    assert study.best().value == study.front()["value"].min()
    with pytest.raises(ConfigurationError, match=r"nfe=7.*2, 3"):
        study.best(nfe=7)


def test_its_scheduler_makes_the_images_that_fewstep_makes(study: fewstep.StudyView, toy: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from fewstep.search_spaces.point import as_point
    from fewstep.tasks.work import Subject, WorkerSettings
    from fewstep.tasks.worker import Worker

    best = study.best(nfe=3)
    own = DDPMScheduler.from_pretrained(str(toy / "scheduler"))
    pipe = DDPMPipeline(UNet2DModel.from_pretrained(str(toy / "unet")), own)
    pipe.set_progress_bar_config(disable=True)
    for scheduler in (best.scheduler(), best.scheduler(own), study.scheduler()):
        pipe.scheduler = scheduler
        scheduler.set_timesteps(3)
        x = starting_noise(0, 0, 2, find_model(str(toy)).shape, "cpu") * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(pipe.unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        ours = Worker(WorkerSettings(Subject(str(toy)))).render(as_point(best.schedule), 0, 0, 2)
        assert np.allclose(x.clamp(-1, 1).numpy(), ours.numpy(), atol=1e-3)


def test_equal_settings_go_on_and_others_are_refused(study: fewstep.StudyView, toy: Path, tmp_path: Path) -> None:
    before = Store(study.path).evaluations.records()
    again = fewstep.search(toy, out=study.path, **SMALL)
    assert Store(study.path).evaluations.records() == before
    assert again.front().equals(study.front())
    with pytest.raises(ConfigurationError, match=r"budget = 9000, not 9001"):
        fewstep.search(toy, out=study.path, **(SMALL | {"budget": 9_001}))
    assert Store(study.path).evaluations.records() == before


def test_a_study_is_opened_to_read(study: fewstep.StudyView, tmp_path: Path) -> None:
    root = Path(shutil.copytree(study.path, tmp_path / "copy"))
    files = sorted(root.rglob("*"))
    opened = fewstep.load_study(str(root))
    assert opened.settings == study.settings
    assert opened.front().equals(study.front())
    assert "<table" in opened._repr_html_()
    assert "search" in repr(opened)
    assert sorted(root.rglob("*")) == files
    with pytest.raises(StorageError, match="no study"):
        fewstep.load_study(tmp_path / "absent")


def test_a_study_without_a_report_says_how_to_go_on(toy: Path, tmp_path: Path) -> None:
    settings = SearchSettings(model=str(toy))
    register(tmp_path / "begun", settings.study, settings, settings.model, find_model(str(toy)).hash)
    begun = fewstep.load_study(tmp_path / "begun")
    with pytest.raises(StorageError, match="--resume"):
        begun.front()
    assert "no report yet" in begun._repr_html_()
    assert len(begun.trials()) == 0


def test_a_pipeline_is_saved_beside_its_study(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from fewstep.pipeline import api

    asked: list[SearchSettings] = []

    def run(study: Study, *_: Any, **__: Any) -> None:
        asked.append(study.settings)

    monkeypatch.setattr(api, "run_study", run)
    network, noise = UNet2DModel.from_pretrained(str(toy / "unet")), DDPMScheduler(clip_sample=False)
    for _ in range(2):
        fewstep.search(DDPMPipeline(network, noise), out=tmp_path / "s", features="digits-ddpm", labels="none")
    assert asked[0] == asked[1]
    assert find_model(asked[0].model).root == tmp_path / "s" / "model"
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["model"]
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    with pytest.raises(ConfigurationError, match="another pipeline"):
        fewstep.search(DDPMPipeline(network, noise), out=tmp_path / "s")
    with pytest.raises(ConfigurationError, match="out="):
        fewstep.search(DDPMPipeline(network, noise))
    with pytest.raises(ConfigurationError, match="int"):
        fewstep.search(3, out=tmp_path / "t")


def test_arguments_go_before_a_recipe_and_conditions_can_be_given_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.pipeline import api

    asked: list[SearchSettings] = []
    monkeypatch.setattr(api, "run_study", lambda study, *_, **__: asked.append(study.settings))
    monkeypatch.chdir(tmp_path)
    fewstep.search(recipe="fashion-front", nfe=4, budget=5_000, guidance="1:8")
    (made,) = asked
    assert (made.nfes, made.budget, made.model) == ((4,), 5_000, "fashion-ddpm")
    assert (made.conditions.labels, made.conditions.guidance, made.guidance_range) == ("balanced", 4.5, (1.0, 8.0))
    (tmp_path / "mine.toml").write_text('model = "digits-ddpm"\nkeep = 0.5\n')
    fewstep.search(recipe="mine.toml", model="fashion-ddpm", conditions={"labels": "balanced", "guidance": 2.0})
    assert (asked[1].study, asked[1].keep, asked[1].conditions.guidance) == ("mine", 0.5, 2.0)
    with pytest.raises(ConfigurationError, match="nothing to lead to"):
        fewstep.search(recipe="mine.toml", conditions={"guidance": 2.0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "which model"),
        ({"model": "digits-ddpm", "colour": 1}, "'colour'.*finals \\(0.1\\)"),
        ({"model": "digits-ddpm", "nfe": range(0)}, "not possible"),
        ({"model": "digits-ddpm", "nfe": "5-3"}, "5-3"),
        ({"model": "digits-ddpm", "executor": "spark"}, "spark"),
        ({"model": "digits-dpm"}, "digits-ddpm"),
        ({"recipe": "digits-dmo"}, "digits-demo"),
    ],
)
def test_mistakes_are_fewsteps_own_errors(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fewstep.search(out=tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def test_an_evaluation_has_its_figures(toy: Path, tmp_path: Path) -> None:
    place: dict[str, Any] = {"out": tmp_path / "e", "executor": "in-process"}
    found = fewstep.evaluate(toy, "ddim/karras-zero@2", images=750, **place)
    assert found.nfe == 2
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.row()["metric"].tolist() == [found.metric]
    assert "<table" in found._repr_html_()
    # The same schedule as an object is the same evaluation.
    same = preset_on_grid("ddim/karras-zero", find_model(str(toy)).noise, 2)
    assert fewstep.evaluate(toy, same, images=750, **place) == found
    assert Store(tmp_path / "e").evaluations.row_count() == 1
    with pytest.raises(ConfigurationError, match="what to evaluate"):
        fewstep.evaluate(toy, **place)
    with pytest.raises(ConfigurationError, match="'colour'"):
        fewstep.evaluate(toy, same, colour=1, **place)


def test_the_public_names_are_there_and_importing_them_is_light() -> None:
    for name in fewstep.__all__:
        assert getattr(fewstep, name) is not None
    code = (
        "import sys, fewstep; assert 'search' in dir(fewstep); fewstep.search\n"
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        _ = fewstep.nothing
