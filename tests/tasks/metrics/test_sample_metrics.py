"""Metrics of single images and of pairs of them: each against its own definition, written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError, EvaluationError
from fewstep.search_spaces.point import as_point
from fewstep.tasks.data import load_dataset
from fewstep.tasks.metrics.metric import Metric, SampleMetric, Score, Setting, make_metric
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import GROUP, Part, Subject, Task, WorkerSettings
from fewstep.tasks.worker import Worker

Array = Any


class Given:
    """Features that are the images' own values, so that a test says what they are."""

    name, hash, dim = "fid-given", "given", 4

    def __call__(self, images: Tensor) -> Array:
        return images.flatten(1).double().numpy()


class Made:
    """A worker whose images are given."""

    def __init__(self, images: Array) -> None:
        self.images, self.calls = torch.from_numpy(images), 0

    def network(self, point: object) -> Any:
        return type("Changed", (), {"denoiser": self, "figures": {}})()

    def render(self, point: object, seed: int, start: int, count: int, denoiser: object = None) -> Tensor:
        self.calls += 3 * count
        return self.images[start : start + count]


def points(count: int, seed: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 4)) * 0.5 + shift


POINT = as_point(preset_on_grid("ddim/uniform-t", find_model("digits-ddpm").noise, 3)).to_json()


def scored(name: str, made: Array, real: Array) -> tuple[Score, tuple[Part, ...], Metric]:
    setting = Setting(Subject("digits-ddpm"), find_model("digits-ddpm"))
    setting.extractor, setting.samples = Given(), (real, "real")
    metric = make_metric(name, setting)
    worker: Any = Made(made.reshape(-1, 1, 2, 2))
    # Parts of different tasks add up as those of one do.
    tasks = [Task("k", name, POINT, 0, a, b - a) for a, b in ((0, GROUP), (GROUP, len(made)))]
    if not metric.grows or len(made) <= GROUP:
        tasks = [Task("k", name, POINT, 0, 0, len(made))]
    parts = tuple(part for task in tasks for part in metric.measure(worker, task).parts)
    return metric.score(parts, {}), parts, metric


def _off_diagonal(k: Array) -> float:
    return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))


def polynomial(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Array, y: Array) -> Array:
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return 1000 * np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 10**2))


@pytest.mark.parametrize(("name", "kernel"), [("kid", polynomial), ("cmmd", gaussian)])
@pytest.mark.parametrize("count", [2, 200, 2 * GROUP + 1])
def test_a_kernel_distance_is_the_unbiased_one_of_groups(name: str, kernel: Callable[..., Array], count: int) -> None:
    x, y = points(count, 0, 0.3), points(130, 1)
    score, parts, metric = scored(name, x, y)
    groups = [x[i : i + GROUP] for i in range(0, count, GROUP)]
    pairs = [len(g) * (len(g) - 1) for g in groups]
    within = sum(_off_diagonal(kernel(g, g)) * n for g, n in zip(groups, pairs, strict=True) if n) / sum(pairs)
    expected = within - 2 * kernel(x, y).mean() + _off_diagonal(kernel(y, y))
    assert score.value == pytest.approx(expected, rel=1e-9)
    assert score.figures["nfe"] == 3
    assert (metric.figure, len(parts)) == (name, len(groups))
    if count > 2 * GROUP:
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
        assert metric.paired(parts, parts) == (0, 0, 0)


@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_of_one_distribution_an_unbiased_distance_is_zero_on_average(name: str) -> None:
    """At 12 images a plug-in estimate would be far off; the mean of many is at 0 within its error."""
    values = np.array([scored(name, points(12, 2 * i), points(12, 2 * i + 1))[0].value for i in range(200)])
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean()) < 3.5 * error
    assert (values < 0).any()
    shifted, _, _ = scored(name, points(200, 0, 0.8), points(200, 1))
    assert shifted.value > 5 * values.std()


def test_one_image_has_no_kernel_distance_and_few_have_no_manifold() -> None:
    with pytest.raises(EvaluationError, match="kid needs at least 2 images"):
        scored("kid", points(1, 0), points(9, 1))
    with pytest.raises(EvaluationError, match="more than 3 images; got 3"):
        scored("recall", points(3, 0), points(9, 1))
    setting = Setting(Subject("digits-ddpm"), find_model("digits-ddpm"))
    setting.extractor = Given()
    for name, real in (("kid", points(1, 0)), ("precision", points(3, 0)), ("recall", points(3, 0))):
        setting.samples = real, "few"
        with pytest.raises(DataError, match="the reference holds"):
            make_metric(name, setting).check()


def manifold(centres: Array) -> Callable[[Array], Array]:
    """Whether points lie in a ball around a centre that reaches to its third nearest other one."""
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    radii = np.sort(apart, axis=1)[:, 3]
    return lambda p: (np.linalg.norm(p[:, None] - centres[None], axis=-1) <= radii).any(axis=1)


@pytest.mark.parametrize("shift", [0.0, 0.7, 9.0])
def test_precision_and_recall_are_shares_of_manifolds(shift: float) -> None:
    made, real = points(GROUP + 40, 3, shift), points(120, 4)
    precision, parts, metric = scored("precision", made, real)
    recall, whole, other = scored("recall", made, real)
    assert precision.figures["precision"] == pytest.approx(manifold(real)(made).mean())
    assert recall.figures["recall"] == pytest.approx(manifold(made)(real).mean())
    for score, name in ((precision, "precision"), (recall, "recall")):
        assert score.value == pytest.approx(1 - score.figures[name])
        assert score.low is not None
        assert score.high is not None
        assert 0 <= score.low <= score.value <= score.high <= 1
    assert (len(parts), len(whole)) == (2, 1)
    assert not other.grows
    with pytest.raises(ConfigurationError, match="1-recall has no paired difference"):
        other.paired(whole, whole)
    assert metric.figure == "1-precision"


def test_a_reference_of_moments_is_refused_where_images_are_needed(tmp_path: Path) -> None:
    files = find_model("digits-ddpm")
    for reference in (str(files.root / "reference.npz"), str(tmp_path / "absent.npz")):
        metric = make_metric("kid", Setting(Subject("digits-ddpm", reference=reference), files))
        with pytest.raises(DataError, match=r"holds the moments.*needs the images themselves.*--reference images"):
            metric.check()


def test_a_model_of_ours_is_compared_with_what_it_was_trained_on(tiny_ddpm: Path) -> None:
    files = find_model("digits-ddpm")
    metric = make_metric("kid", Setting(Subject("digits-ddpm"), files))
    assert isinstance(metric, SampleMetric)
    metric.check()
    features, address = metric.setting.samples
    named = make_metric("precision", Setting(Subject("digits-ddpm", reference="digits"), files))
    assert named.reference == address
    own = metric.setting.reference[0]
    np.testing.assert_allclose(Moments.of(features).covariance, own.covariance, rtol=1e-3, atol=1e-3)
    # And a model of which nothing says it is not.
    metric = make_metric("kid", Setting(Subject(str(tiny_ddpm), features="auto"), find_model(str(tiny_ddpm))))
    metric.setting.extractor = Given()
    with pytest.raises(ConfigurationError, match="brings no reference"):
        metric.check()


def test_of_a_large_reference_images_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.tasks.metrics import reference

    monkeypatch.setattr(reference, "MOST_SAMPLES", 10)
    found, _ = reference.load_reference_features("digits", find_model("digits-ddpm"), Given())
    images = load_dataset("digits").images
    wanted = [i * len(images) // 10 for i in range(10)]
    np.testing.assert_array_equal(found, images[wanted].reshape(10, -1))


def test_an_argument_names_features_and_each_space_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def pixels():\n    return lambda images: images.flatten(1)\n")
    setting = Setting(Subject("digits-ddpm", reference="digits"), find_model("digits-ddpm"))
    given = f"{tmp_path}/mine.py:pixels"
    kid, frechet, plain = (make_metric(name, setting) for name in (f"kid:{given}", f"frechet:{given}", "frechet"))
    assert kid.setting is frechet.setting
    assert kid.features == frechet.features == "fid-pixels"
    assert plain.features == "fid-digits"
    assert kid.identity != make_metric("kid", setting).identity
    with pytest.raises(ConfigurationError, match="takes no argument: leave ':x' away"):
        make_metric("holes:x", setting)


# -- prompts ----------------------------------------------------------------------------------------------


PROMPTS = "a cat\na very long tale of a dog\nred"


def _asking(model: Path, **fields: Any) -> Worker:
    return Worker(WorkerSettings(Subject(str(model), conditions=Conditions(prompts=PROMPTS), **fields)))


def _point(worker: Worker) -> str:
    return as_point(preset_on_grid("ddim/uniform-t", worker.files.noise, 2)).to_json()


def test_clip_score_is_the_cosine_of_each_image_and_its_own_prompt(clip: Path, tiny_stable_diffusion: Path) -> None:
    import transformers as t

    worker = _asking(tiny_stable_diffusion)
    point = _point(worker)
    metric = make_metric(f"clip-score:{clip}", worker.setting)
    metric.check()
    result = worker.run(Task("k", f"clip-score:{clip}", point, 5, 0, 4))
    assert result.error == ""
    score = metric.score(result.parts, result.figures)
    images = worker.render(point, 5, 0, 4)
    small = torch.nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    processor, tokenizer = (kind.from_pretrained(str(clip)) for kind in (t.CLIPImageProcessor, t.CLIPTokenizer))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    model = t.CLIPModel.from_pretrained(str(clip)).eval()
    lines = PROMPTS.splitlines()
    expected = []
    for i in range(4):
        tokens = tokenizer([lines[i % 3]], return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            found = model(**tokens, pixel_values=(((small[i : i + 1] + 1) / 2) - mean) / std)
        expected.append(100 * max(0.0, float((found.image_embeds * found.text_embeds).sum())))
    assert score.value == pytest.approx(-np.mean(expected), rel=1e-4, abs=1e-4)
    assert score.figures["clip_score"] == -score.value
    assert metric.figure == "neg-clip-score"
    assert score.low is not None
    half = 1.96 * np.std(expected, ddof=1) / 2
    assert score.value - score.low == pytest.approx(half, rel=1e-2, abs=1e-4)


def test_clip_score_without_prompts_or_without_clip_is_refused(clip: Path, tiny_stable_diffusion: Path) -> None:
    digits = Setting(Subject("digits-ddpm"), find_model("digits-ddpm"))
    with pytest.raises(ConfigurationError, match="give --prompts"):
        make_metric(f"clip-score:{clip}", digits).check()
    setting = _asking(tiny_stable_diffusion).setting
    with pytest.raises(ConfigurationError, match="needs the folder of a CLIP model, not 'auto'"):
        make_metric("clip-score", setting).check()
    import transformers as t

    other = clip.parent / "dino"
    t.Dinov2Model(
        t.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    ).save_pretrained(str(other))
    with pytest.raises(ConfigurationError, match="embeds no images and texts"):
        make_metric(f"clip-score:{other}", setting).check()


SCORERS = """
import torch

def brightness(images, prompts):
    assert len(prompts) == len(images)
    return images.mean(dim=(1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts], device=images.device)

class Loaded:
    def __call__(self, images, prompts):
        return [[float(i.mean())] for i in images]

def column(images, prompts):
    return images.flatten(1)

def broken(images, prompts):
    raise KeyError("weights")
"""


def test_a_scorer_of_ones_own_gets_images_and_prompts(tmp_path: Path, tiny_stable_diffusion: Path) -> None:
    (tmp_path / "rewards.py").write_text(SCORERS)
    worker = _asking(tiny_stable_diffusion)
    point = _point(worker)
    name = f"scorer:{tmp_path}/rewards.py:brightness"
    metric = make_metric(name, worker.setting)
    metric.check()
    result = worker.run(Task("k", name, point, 5, 1, 3))
    assert result.error == ""
    score = metric.score(result.parts, {})
    lines = PROMPTS.splitlines()
    expected = worker.render(point, 5, 1, 3).mean() + np.mean([len(lines[i % 3]) for i in (1, 2, 3)])
    assert score.value == pytest.approx(-float(expected), rel=1e-5)
    assert score.figures["score"] == -score.value
    assert metric.features == "fid-brightness"
    loaded = make_metric(f"scorer:{tmp_path}/rewards.py:Loaded", worker.setting)
    loaded.check()
    assert loaded.identity != metric.identity
    for wrong, words in {"column": "one score each is due", "broken": "KeyError", "absent": "cannot be loaded"}.items():
        with pytest.raises(ConfigurationError, match=words):
            make_metric(f"scorer:{tmp_path}/rewards.py:{wrong}", worker.setting).check()
    with pytest.raises(ConfigurationError, match="scorer:MODULE:CALLABLE"):
        make_metric("scorer", worker.setting)


# -- the teacher ------------------------------------------------------------------------------------------


def test_the_perceptual_distance_is_to_what_the_teacher_makes_of_the_same_noise() -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    noise = worker.files.noise
    teacher, near, far = (as_point(preset_on_grid("dpmpp-2m/karras-zero", noise, nfe)).to_json() for nfe in (12, 8, 2))
    metric = make_metric("perceptual", worker.setting)
    metric.check()
    scores = []
    for point in (teacher, near, far):
        result = worker.run(Task("k", "perceptual", point, 3, 0, 30, {"teacher": teacher}))
        assert result.error == ""
        scores.append(metric.score(result.parts, {}))
    assert scores[0].value == 0 < scores[1].value < scores[2].value < 4
    features = [
        f / np.linalg.norm(f, axis=1, keepdims=True)
        for f in map(worker.extractor, (worker.render(far, 3, 0, 30), worker.render(teacher, 3, 0, 30)))
    ]
    expected = ((features[0] - features[1]) ** 2).sum(1)
    assert scores[2].value == pytest.approx(expected.mean(), rel=1e-6)
    # The reference plays no part, so that none is needed.
    assert metric.standard == {"kind": "perceptual"}
