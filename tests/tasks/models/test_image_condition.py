"""Holes, layouts, what a network is shown of them, and the samples of models that are shown something."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.search_spaces.ode import OdeSettings
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_encoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.fills import mean_fill, nearest_fill
from fewstep.tasks.models.image_condition import build_condition, layout_of, load_condition
from fewstep.tasks.models.masks import free_form_mask, free_form_masks
from fewstep.tasks.models.sources import Sources
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

EDGES = (-0.5, 0.5)
INPAINT = ConditionConfig(kind="inpaint", dataset="digits", channels=3)
LAYOUT = ConditionConfig(kind="layout", dataset="digits", channels=5, thresholds=EDGES)
TEST = Conditions(source="test", labels="balanced", guidance=1.5)
DOPRI5 = OdeSettings(atol=3e-2, rtol=3e-2).to_json()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shown")
    return {c.kind: make_tiny_flow(root / c.kind, c, features=False) for c in (INPAINT, LAYOUT)}


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["inpaint"], tmp_path / "copy"))


def _digits(count: int) -> Tensor:
    return torch.from_numpy(load_dataset("digits").images[:count])


def test_a_hole_is_a_function_of_its_key_and_leaves_something_to_see() -> None:
    masks = free_form_masks(28, [(0, 1, i) for i in range(300)])
    assert masks.shape == (300, 1, 28, 28)
    share = masks.float().mean((1, 2, 3))
    assert 0 < float(share.min()) < float(share.max()) < 1
    assert 0.15 < float(share.mean()) < 0.4
    assert len({m.numpy().tobytes() for m in masks}) > 295
    assert (free_form_mask(28, 0, 1, 7) == masks[7, 0].numpy()).all()
    assert not (free_form_mask(28, 0, 0, 7) == masks[7, 0].numpy()).all()
    for i in range(50):
        small = free_form_mask(4, i)
        assert small.any()
        assert not small.all()


def test_layouts_count_the_thresholds_that_the_smoothed_image_reaches() -> None:
    flat = torch.stack([torch.full((1, 6, 6), v) for v in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    assert [int(layout.unique()) for layout in layout_of(flat, EDGES)] == [0, 1, 1, 2, 2]
    # One bright pixel: 4, 2 and 1 sixteenths of it are left in the middle, beside it and at its corners.
    one = torch.full((1, 1, 5, 5), -1.0)
    one[0, 0, 2, 2] = 1.0
    expected = torch.zeros(5, 5, dtype=torch.long)
    expected[2, 2] = 2
    expected[1, 2] = expected[2, 1] = expected[2, 3] = expected[3, 2] = 1
    assert torch.equal(layout_of(one, (-0.76, -0.51))[0], expected)


def test_maps_hold_shares_of_each_latents_pixels() -> None:
    images, holes = _digits(20), free_form_masks(8, [(3, i) for i in range(20)])
    one_hot = torch.nn.functional.one_hot(layout_of(images, EDGES), 3).permute(0, 3, 1, 2).double()
    shares = build_condition(LAYOUT).maps(images, holes, lambda x: x, 4)
    blocks = one_hot.reshape(20, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(shares.double(), blocks)
    seen: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        seen.append(x)
        return x[:, :, ::2, ::2]

    maps = build_condition(INPAINT).maps(images, holes, encode, 4)
    assert torch.equal(seen[0], torch.where(holes, torch.zeros(()), images))
    torch.testing.assert_close(maps[:, -1:], holes.float().reshape(20, 1, 4, 2, 4, 2).mean((3, 5)))


@pytest.mark.parametrize("kind", ["inpaint", "layout"])
def test_a_saved_condition_loads_as_it_was(kind: str, tmp_path: Path) -> None:
    condition = build_condition(INPAINT if kind == "inpaint" else LAYOUT, 9)
    condition.save(tmp_path)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    loaded = load_condition(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    maps = torch.rand(2, 3, 4, 4)
    assert loaded.config == condition.config
    with torch.no_grad():
        assert torch.equal(loaded(maps), condition(maps))


@pytest.mark.parametrize("kind", ["inpaint", "layout"])
@pytest.mark.parametrize("sampler", ["dopri5", "preset"])
def test_samples_depend_on_image_and_seed_alone(kind: str, sampler: str, models: dict[str, Path]) -> None:
    """Whatever the start, the count and the size of batches: up to rounding, which the flow amplifies.

    Another hole, or another image's, moves samples a hundred times as far.
    """
    files = find_model(str(models[kind]))
    text = DOPRI5 if sampler == "dopri5" else preset_on_grid("unipc-2-bh2/uniform-t-zero", files.noise, 4).to_json()
    worker = Worker(WorkerSettings(Subject(str(models[kind]), conditions=TEST)))
    whole = worker.render(text, 7, 0, 9)
    worker.batch = 4
    parts = [worker.render(text, 7, start, 3) for start in (3, 0, 6)]
    torch.testing.assert_close(torch.cat([parts[1], parts[0], parts[2]]), whole, rtol=0, atol=1e-3)
    worker.exact.sources = Sources(files, "cpu", TEST.model_copy(update={"source_seed": 1}))
    moved = (worker.render(text, 7, 0, 9) - whole).abs().max()
    # Layouts have no holes to draw.
    assert moved > 0.1 if kind == "inpaint" else moved < 1e-3


def test_known_pixels_are_the_image_s_own_bit_for_bit(models: dict[str, Path]) -> None:
    worker = Worker(WorkerSettings(Subject(str(models["inpaint"]), conditions=TEST)))
    made = worker.render(DOPRI5, 7, 5, 20)
    sources = Sources(worker.files, "cpu", TEST)
    holes, truth = sources.holes(range(5, 25)), sources.images(range(5, 25))
    assert torch.equal(truth, torch.from_numpy(load_dataset("digits", "test").images[5:25]))
    assert torch.equal(made[~holes], truth[~holes])
    assert (made[holes] != truth[holes]).float().mean() > 0.9


def test_the_network_is_shown_the_condition_behind_its_latents(models: dict[str, Path]) -> None:
    denoiser = Denoiser(find_model(str(models["layout"])), conditions=Conditions(source="train"))
    assert denoiser.sources is not None
    x, indices = torch.randn(3, 2, 4, 4), [4, 0, 1797 + 4]
    shown = denoiser.sources.shown(indices)
    # Image i shows image i mod N.
    assert torch.equal(shown[0], shown[2])
    condition = load_condition(models["layout"] / "condition")
    maps = condition.maps(_digits(5)[[4, 0]], torch.zeros(2, 1, 8, 8, dtype=torch.bool), lambda x: x, 4)
    with torch.no_grad():
        torch.testing.assert_close(shown[:2], condition(maps))
        null = torch.full((3,), 10)
        theirs = denoiser.network.module(torch.cat([x, shown], 1), torch.tensor(300.0), null).sample
        assert torch.equal(denoiser.on(indices)(x, 300.0), theirs)


def test_a_latent_of_the_encoder_is_the_scaled_mean(models: dict[str, Path]) -> None:
    from diffusers import AutoencoderKL

    files, images = find_model(str(models["inpaint"])), _digits(3)
    vae = AutoencoderKL.from_pretrained(str(files.root / "vae"))
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(load_encoder(files, "cpu")(images), expected)


def test_a_condition_is_part_of_the_model_s_address(models: dict[str, Path], copy: Path) -> None:
    before = find_model(str(copy)).hash
    assert before == find_model(str(models["inpaint"])).hash
    path = copy / "condition" / "config.json"
    path.write_text(path.read_text() + " ")
    assert find_model(str(copy)).hash != before


def test_conditions_without_a_source_are_written_as_before_there_were_any() -> None:
    """So that what was computed under them is found again."""
    asked = Conditions(labels="1", guidance=2.0)
    text = '{"labels":"1","prompts":"","negative_prompt":"","guidance":2.0,"classifier":"","classifier_scale":0.0}'
    assert asked.model_dump_json() == text
    assert asked.hash == hashlib.sha256(text.encode()).hexdigest()[:16]
    shown = [Conditions(source="test"), Conditions(source="train"), Conditions(source="test", source_seed=1)]
    assert len({c.hash for c in shown} | {""}) == 4
    assert all(Conditions.model_validate_json(c.model_dump_json()) == c for c in shown)


def test_fills_take_known_pixels_as_they_are() -> None:
    training, images = _digits(300), torch.from_numpy(load_dataset("digits").images[300:330])
    holes = free_form_masks(8, [(1, i) for i in range(30)])
    for filled in (mean_fill(images, holes), nearest_fill(images, holes, training)):
        assert torch.equal(filled[~holes], images[~holes])
    mean = mean_fill(images, holes)
    assert float(mean[3][holes[3]][0]) == pytest.approx(float(images[3][~holes[3]].mean()), abs=1e-6)
    for i in range(30):
        known = ~holes[i]
        distances = ((training - images[i]).square() * known).sum((1, 2, 3))
        filled = nearest_fill(images[[i]], holes[[i]], training)[0]
        rows = [t for t, d in zip(training, distances, strict=True) if d <= distances.min() + 1e-3]
        assert any(torch.equal(filled[holes[i]], t[holes[i]]) for t in rows)
    # A training image is its own nearest.
    assert torch.equal(nearest_fill(training[:9], holes[:9], training), training[:9])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "colour"}, "does not say what the network is shown"),
        ({"channels": 4}, "4 channels in|does not|4 channels; inpainting shows 2 latents"),
        ({"kind": "layout", "thresholds": [0.0], "channels": 2}, "5 channels in and 2 out"),
        ({"more": 1}, "more"),
    ],
)
def test_a_condition_that_does_not_fit_its_network(change: dict[str, object], words: str, copy: Path) -> None:
    path = copy / "condition" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        find_model(str(copy))


def test_parts_of_a_condition_that_are_missing(models: dict[str, Path], copy: Path, tmp_path: Path) -> None:
    (copy / "condition" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"condition/config\.json"):
        find_model(str(copy))
    shutil.rmtree(copy / "condition")
    with pytest.raises(ModelError, match="5 channels in and 2 out"):
        find_model(str(copy))
    layout = Path(shutil.copytree(models["layout"], tmp_path / "layout"))
    (layout / "condition" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="the weights do not load"):
        Denoiser(find_model(str(layout)), conditions=TEST)
    pixels = Path(shutil.copytree(models["layout"], tmp_path / "pixels"))
    shutil.rmtree(pixels / "vae")
    with pytest.raises(ModelError, match="only networks of latents"):
        find_model(str(pixels))


def test_sources_that_are_missing_or_not_wanted(models: dict[str, Path], copy: Path) -> None:
    with pytest.raises(ConfigurationError, match="--source test"):
        Denoiser(find_model(str(models["layout"])))
    with pytest.raises(ConfigurationError, match="leave --source out"):
        Denoiser(find_model("digits-ddpm"), conditions=Conditions(source="test"))
    path = copy / "condition" / "config.json"
    path.write_text(path.read_text().replace("digits", "nothing"))
    with pytest.raises(ConfigurationError, match="nothing"):
        Denoiser(find_model(str(copy)), conditions=TEST)
