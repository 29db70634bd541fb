"""Schedules are tuned in whatever features the subject has, on images as they are judged, within their calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import as_point, parse_point, schedule_of
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.frechet_metric import FrechetMetric
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Array, ReferenceMoments
from fewstep.tasks.models.classifier import SmallClassifier
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ZOO, find_model
from fewstep.tasks.refinement.descend import descend
from fewstep.tasks.refinement.features import MOST_DIRECTIONS, Judge, check_tunable
from fewstep.tasks.refinement.moment_descent import MomentDescent
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, WorkerSettings
from fewstep.tasks.worker import Worker

IMAGES = 125
PLAN = MomentPlan(images=IMAGES, look=125, limit=1500, seed=5)


class Wide:
    """Features without a gradient: cosines of random projections."""

    name, hash = "wide", "wide"

    def __init__(self, dim: int, pixels: int) -> None:
        self.dim = dim
        self._weights = torch.randn(pixels, dim, generator=torch.Generator().manual_seed(0)) / pixels**0.5

    def __call__(self, images: Tensor) -> Array:
        found: Array = torch.cos(3 * images.flatten(1).float() @ self._weights).double().numpy()
        return found


def _reference(setting: Setting) -> None:
    """The subject's own: moments of smooth images in its features."""
    files = setting.files
    small = torch.rand(600, files.channels, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = torch.nn.functional.interpolate(small, (files.size, files.size), mode="bilinear")
    features = setting.extractor(images)
    moments = ReferenceMoments(features.mean(0), np.cov(features.T), len(features))
    setting.reference = moments, "smooth"


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[[int], Path]:
    def make(channels: int) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            SmallClassifier(channels, 8, 10, width=8, feature_dim=12).save(tmp_path / "features")
        return tmp_path / "features"

    return make


def _worker(subject: Subject, wide: int = 0) -> Worker:
    worker = Worker(WorkerSettings(subject))
    if wide:
        worker.setting.extractor = Wide(wide, worker.files.channels * worker.files.size**2)
    _reference(worker.setting)
    return worker


@pytest.mark.parametrize("case", ["folder", "no gradient", "latents", "hole"])
def test_what_it_tells_is_what_the_judge_sees_of_what_it_returns(
    case: str,
    tiny_ddpm: Path,
    make_tiny_flow: Callable[..., Path],
    classifier: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    """On a model that brings no features, through the autoencoder, and with known pixels put back."""
    if case in ("folder", "no gradient"):
        subject = Subject(str(tiny_ddpm), features=str(classifier(3)))
    else:
        hole = ConditionConfig(kind="inpaint", dataset="digits", channels=3) if case == "hole" else None
        model = make_tiny_flow(tmp_path / "flow", hole, labels=False, features=False)
        asked = Conditions(source="test") if hole else Conditions()
        subject = Subject(str(model), features=str(classifier(1)), conditions=asked)
    worker = _worker(subject, wide=20 if case == "no gradient" else 0)
    start = preset_on_grid("dpmpp-2m/karras-zero", worker.files.noise, 2)
    plan = {"plan": PLAN.model_dump_json(), "teacher": start.to_json()}
    result = worker.run(Task("k", "refine", as_point(start).to_json(), PLAN.noise_seed, 0, IMAGES, plan))
    assert result.error == ""
    assert result.figures["calls"] == result.denoiser_calls <= PLAN.limit
    assert result.figures["loss"] < result.figures["loss_before"]
    frechet = FrechetMetric(worker.setting)
    for figure, point in (("loss_before", as_point(start).to_json()), ("loss", result.point)):
        judged = worker.run(Task("j", "frechet", point, PLAN.noise_seed, 0, IMAGES))
        assert result.figures[figure] == pytest.approx(frechet.score(judged.parts, {}).value, rel=1e-3)
    found = schedule_of(parse_point(result.point))
    assert found is not None
    assert found.nfe == start.nfe


def test_many_features_are_told_in_their_leading_directions(tiny_ddpm: Path) -> None:
    """So that what is kept of derivatives is bounded; the distance in all of them falls too."""
    files, denoiser = find_model(str(tiny_ddpm)), Denoiser(find_model(str(tiny_ddpm)))
    setting = Setting(Subject(str(tiny_ddpm)), files)
    setting.extractor = Wide(300, 3 * 8 * 8)
    _reference(setting)
    judge = Judge(setting, denoiser)
    start = preset_on_grid("dpmpp-2m/karras-zero", files.noise, 2)
    descent = MomentDescent(start, denoiser, PLAN, judge.leading())
    told = descent.derivatives(descent.begin(), descent._block(0), descent._all)
    assert told.covariance.shape[1:] == (MOST_DIRECTIONS, MOST_DIRECTIONS)
    found = descend(start, denoiser, PLAN, judge)
    assert found.after < found.before
    every = [MomentDescent(s, denoiser, PLAN, judge).begin().value for s in (start, found.schedule)]
    assert every[1] < every[0]
    assert found.before < every[0]


def test_few_features_are_left_as_they_are() -> None:
    files = find_model("digits-ddpm")
    judge = Judge(Setting(Subject("digits-ddpm"), files), Denoiser(files))
    samples = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge(samples, range(20)), judge.leading()(samples, range(20)))
    expected = make_extractor("auto", files, "cpu")(samples.clamp(-1, 1))
    torch.testing.assert_close(judge(samples, range(20)), torch.from_numpy(expected))


@pytest.mark.parametrize("nfe", [1, 3])
@pytest.mark.parametrize("limit", [1, 700, 1500])
def test_no_call_is_made_beyond_the_limit_but_those_of_the_first_schedule(
    nfe: int, limit: int, tiny_ddpm: Path
) -> None:
    files = find_model(str(tiny_ddpm))
    denoiser, setting = Denoiser(files), Setting(Subject(str(tiny_ddpm)), files)
    setting.extractor = Wide(8, 3 * 8 * 8)
    _reference(setting)
    first, other = (preset_on_grid(name, files.noise, nfe) for name in ("ddim/karras-zero", "dpmpp-2m/uniform-t-zero"))
    plan = MomentPlan(images=125, look=125, limit=limit, others=(other.to_json(),), seed=3)
    found = descend(first, denoiser, plan, Judge(setting, denoiser))
    assert found.cost.calls == denoiser.calls <= max(limit, nfe * plan.images) <= plan.calls(nfe, 0)


def test_distances_that_need_a_gradient_are_refused_where_there_is_none(
    tiny_ddpm: Path, classifier: Callable[[int], Path]
) -> None:
    files = find_model(str(tiny_ddpm))
    for features in ("auto", "inception"):
        setting = Setting(Subject(str(tiny_ddpm), features=features), files)
        for distance in ("reference", "features"):
            with pytest.raises(ConfigurationError, match="gradients through its features"):
                check_tunable(setting, distance)
        for distance in ("moments", "network", "pixel"):
            check_tunable(setting, distance)
        assert "extractor" not in vars(setting), "nothing heavy was loaded"
    own = Setting(Subject(str(tiny_ddpm), features=str(classifier(3))), files)
    for distance in ("reference", "features"):
        check_tunable(own, distance)
    with pytest.raises(ConfigurationError, match="unknown distance 'taste'"):
        check_tunable(own, "taste")


@pytest.mark.parametrize("distance", ["reference", "features"])
def test_a_folder_of_features_passes_gradients(distance: str, tmp_path: Path) -> None:
    shutil.copytree(ZOO / "digits-ddpm" / "classifier", tmp_path / "features")
    worker = Worker(WorkerSettings(Subject("digits-ddpm", features=str(tmp_path / "features"), reference="digits")))
    start = preset_on_grid("unipc-2-bh2/karras-zero", worker.files.noise, 3)
    teacher = preset_on_grid("ddim/uniform-t-zero", worker.files.noise, 8).to_json()
    settings = {"images": 32, "validation": 64, "batch": 32, "iterations": 6, "check_every": 3, "speed": 2.0}
    plan = RefinePlan.build(distance=distance, **settings)
    arguments = {"plan": plan.model_dump_json(), "teacher": teacher}
    result = worker.run(Task("k", "refine", as_point(start).to_json(), 0, 0, plan.seen, arguments))
    assert result.error == ""
    assert result.figures["calls"] == result.denoiser_calls
    assert result.figures["loss"] < result.figures["loss_before"]
