"""Networks that are shown images: where they start, that the embedding trains, resume, and the entry that comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.pipeline import cli
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.image_condition import build_condition
from fewstep.tasks.models.masks import free_form_masks
from fewstep.tasks.training.diffusion import Trained, train_network
from fewstep.tasks.training.entry import train_entry
from fewstep.tasks.training.examples import Latents, Maps
from fewstep.tasks.training.loop import Progress
from fewstep.tasks.training.networks import build_network, start_from
from fewstep.tasks.training.recipe import TrainingRecipe
from fewstep.tasks.training.recipes import RECIPES, training_recipe

UNET = {
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "num_class_embeds": 11,
}
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 2,
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}
SHOWN = {
    "inpaint": ConditionConfig(kind="inpaint", dataset="digits", channels=3),
    "layout": ConditionConfig(kind="layout", dataset="digits", channels=5, thresholds=(-0.5, 0.5)),
}
KINDS = tuple(SHOWN)


def _recipe(kind: str = "", **changes: object) -> TrainingRecipe:
    fields: dict[str, object] = {
        "name": "tiny",
        "dataset": "digits",
        "unet": UNET,
        "autoencoder": {"vae": VAE, "steps": 2, "batch": 16},
        "objective": "flow",
        "steps": 4,
        "batch": 16,
        "warmup": 1,
        "label_dropout": 0.5,
        "features_of": "digits-ddpm",
    }
    if kind:
        wider = UNET | {"in_channels": 2 + SHOWN[kind].channels}
        fields |= {"unet": wider, "condition": SHOWN[kind], "starts_from": "tiny"}
    return TrainingRecipe.model_validate(fields | changes)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(load_dataset("digits").images[:200])


def _halved(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 2).repeat(1, 2, 1, 1)


class _PowerCutError(Exception):
    pass


def _cut(*_: object) -> None:
    raise _PowerCutError


def _train(kind: str, images: Tensor, folder: Path, progress: Progress | None = None, **changes: object) -> Trained:
    recipe = _recipe(kind, **changes)
    mean, labels = _halved(images), torch.zeros(len(images), dtype=torch.long)
    latents = Latents(mean, torch.full_like(mean, 0.05), 1.5)
    maps = Maps(build_condition(SHOWN[kind]), images, _halved, 4, 2, 0)
    start = build_network(_recipe(seed=3))
    return train_network(recipe, latents, labels, folder, every=2, progress=progress, start=start, maps=maps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_widened_network_first_answers_as_the_one_it_starts_from(kind: str) -> None:
    start, network = build_network(_recipe(seed=3)), build_network(_recipe(kind))
    start_from(network, start)
    x, shown = torch.randn(3, 2, 4, 4), torch.randn(3, SHOWN[kind].channels, 4, 4)
    time, label = torch.tensor([1.0, 500.0, 999.0]), torch.tensor([0, 5, 10])
    with torch.no_grad():
        ours = network(torch.cat([x, shown], 1), time, label).sample
        assert torch.equal(ours, start(x, time, label).sample) or torch.allclose(ours, start(x, time, label).sample)


def test_a_network_starts_from_no_other_kind() -> None:
    wider = build_network(_recipe(unet=UNET | {"block_out_channels": (16,)}))
    with pytest.raises(ConfigurationError, match="start from"):
        start_from(build_network(_recipe("layout")), wider)
    with pytest.raises(ConfigurationError, match="another kind"):
        start_from(build_network(_recipe("layout")), build_network(_recipe(unet=UNET | {"layers_per_block": 2})))


def test_the_layout_s_embedding_trains(images: Tensor, tmp_path: Path) -> None:
    """Nothing flows back to it before the network's own weights for it leave zero, at the first step."""
    first = build_condition(SHOWN["layout"]).state_dict()["embedding.weight"]
    trained = _train("layout", images, tmp_path, steps=6, learning_rate=1e-2).condition
    state = torch.load(tmp_path / "training.pt", weights_only=True)["model"]
    assert trained is not None
    moved = state["condition.embedding.weight"] - first
    assert float(moved.abs().max()) > 1e-3
    assert float((trained.state_dict()["embedding.weight"] - first).abs().max()) > 1e-4
    assert float(state["network.conv_in.weight"][:, 2:].abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one(kind: str, images: Tensor, tmp_path: Path) -> None:
    whole = _train(kind, images, tmp_path / "whole")
    with pytest.raises(_PowerCutError):
        _train(kind, images, tmp_path / "cut", progress=_cut)
    torch.rand(7)  # Whatever else draws from the global generator meanwhile.
    resumed = _train(kind, images, tmp_path / "cut")
    assert whole.condition is not None
    assert resumed.condition is not None
    for ours, theirs in ((resumed.network, whole.network), (resumed.condition, whole.condition)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_maps_of_a_draw_are_those_of_its_images(images: Tensor) -> None:
    """One of the holes of each image, and of no other image."""
    condition = build_condition(SHOWN["inpaint"])
    maps = Maps(condition, images, _halved, 4, 2, 7)
    index = torch.tensor([3, 199, 3, 0] * 8)
    drawn = maps.draw(index, torch.Generator().manual_seed(0))
    assert drawn.shape == (32, 3, 4, 4)
    used = set()
    for row, i in zip(drawn, index.tolist(), strict=True):
        each = [condition.maps(images[[i]], free_form_masks(8, [(7, 0, i + 200 * n)]), _halved, 4)[0] for n in range(2)]
        found = [n for n, value in enumerate(each) if torch.allclose(row, value)]
        assert found
        used |= set(found)
    assert used == {0, 1}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry that the tiny recipes start from."""
    folder = tmp_path_factory.mktemp("start")
    train_entry(_recipe(), folder / "tiny", folder / "checkpoints")
    return folder / "tiny"


@pytest.mark.parametrize("kind", KINDS)
def test_the_entry_keeps_the_autoencoder_and_loads(kind: str, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "entry"
    figures = train_entry(_recipe(kind), out, tmp_path / "checkpoints", start=str(start))
    assert not (tmp_path / "checkpoints" / "autoencoder").exists()
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(out / "vae" / name), load_file(start / "vae" / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert json.loads((out / "vae" / "config.json").read_text())["scaling_factor"] == figures["scaling_factor"]
    assert figures["scaling_factor"] == json.loads((start / "card.json").read_text())["scaling_factor"]
    assert figures["started_from"] == f"tiny ({find_model(str(start)).hash})"
    texts = {p: p.read_text() for p in out.rglob("*") if p.suffix in (".json", ".md")}
    assert len(texts) > 6
    assert [p for p, text in texts.items() if str(start) in text] == []
    files = find_model(str(out))
    assert (files.shape, files.size, files.shown) == ((2, 4, 4), 8, kind)
    denoiser = Denoiser(files, conditions=Conditions(source="test"))
    assert denoiser(torch.zeros(3, 2, 4, 4), 500.0).shape == (3, 2, 4, 4)
    assert figures["started_from"] in (out / "README.md").read_text()
    # Nothing in it says where on a machine it was made.
    assert not [f for f in (tmp_path).rglob("*.json") if str(start.parent) in f.read_text()]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet": UNET}, "the condition's"),
        ({"autoencoder": None}, "needs an autoencoder"),
        ({"flip": True}, "no flips"),
        ({"dataset": "fashion"}, "of `dataset` itself"),
        ({"condition": {"kind": "layout", "dataset": "digits", "channels": 5}}, "need at least one"),
        ({"condition": {"kind": "layout", "dataset": "digits", "channels": 5, "thresholds": (0.5, 0.1)}}, "not rise"),
        ({"condition": {"kind": "inpaint", "dataset": "digits", "channels": 5, "thresholds": (0.5,)}}, "for layouts"),
    ],
)
def test_recipes_that_do_not_fit_together(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _recipe("layout", **changes)


def test_a_start_that_is_not_there_or_is_another(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    with pytest.raises(ModelError, match="no model 'tiny'"):
        train_entry(_recipe("layout"), tmp_path, tmp_path)
    with pytest.raises(ConfigurationError, match=r"starts from tiny, which .*digits-ddpm is not"):
        train_entry(_recipe("layout"), tmp_path, tmp_path, start="digits-ddpm")
    with pytest.raises(ConfigurationError, match="leave --from out"):
        train_entry(_recipe(), tmp_path, tmp_path, start=str(start))


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_zoo_s_recipes_are_valid(name: str) -> None:
    recipe = training_recipe(name)
    assert TrainingRecipe.model_validate(recipe.model_dump()) == recipe


def test_the_command_names_what_a_recipe_does_not_train(monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setattr("sys.argv", ["fewstep", "train", "fashion-lfm-layout", "--autoencoder-steps", "5"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
