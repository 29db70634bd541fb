"""Training: a killed run loses nothing, and what it makes is a model that the rest of the house accepts."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline import cli
from fewstep.tasks.data import Dataset, load_dataset
from fewstep.tasks.models.files import find_model
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.entry import train_entry
from fewstep.tasks.training.examples import Pixels
from fewstep.tasks.training.loop import CHECKPOINT, Progress, learning_rate
from fewstep.tasks.training.objectives import objective_of
from fewstep.tasks.training.recipe import TrainingRecipe
from fewstep.tasks.training.recipes import RECIPES, training_recipe


def _tiny(**changes: object) -> TrainingRecipe:
    unet = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (4,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 2,
        "add_attention": False,
    }
    fields = {"name": "tiny", "dataset": "digits", "unet": unet, "steps": 20, "batch": 16, "warmup": 5}
    return TrainingRecipe.model_validate(fields | {"classifier_steps": 30} | changes)


def _train(
    recipe: TrainingRecipe, data: Dataset, folder: Path, every: int = 500, progress: Progress | None = None
) -> Any:
    examples, labels = Pixels(torch.from_numpy(data.images)), torch.from_numpy(data.labels)
    return train_network(recipe, examples, labels, folder, every=every, progress=progress)[0]


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("labels", [False, True])
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(labels: bool, tmp_path: Path) -> None:
    recipe = _tiny()
    if labels:
        recipe = _tiny(unet=recipe.unet | {"num_class_embeds": 11}, label_dropout=0.3, flip=True)
    data = load_dataset("digits")
    whole = _train(recipe, data, tmp_path / "whole", every=8)
    steps: list[int] = []

    def cut(step: int, total: int, loss: float) -> None:
        steps.append(step)
        assert total == 20
        assert loss > 0
        raise _PowerCutError

    for _ in range(2):
        with pytest.raises(_PowerCutError):
            _train(recipe, data, tmp_path / "cut", every=8, progress=cut)
    assert steps == [8, 16]
    # Torn while it was written: only a finished checkpoint counts.
    (tmp_path / "cut" / "training.tmp").write_bytes(b"half")
    resumed = _train(recipe, data, tmp_path / "cut", every=8)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    # Once more: it is finished, and nothing is trained.
    again = _train(recipe, data, tmp_path / "cut", progress=cut)
    assert all(torch.equal(again.state_dict()[k], theirs[k]) for k in theirs)
    kept = torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)
    assert kept["step"] == 20
    # As checkpoints were written when there was one kind of network.
    torch.save({"unet" if k == "model" else k: v for k, v in kept.items()}, tmp_path / "cut" / CHECKPOINT)
    again = _train(recipe, data, tmp_path / "cut", progress=cut)
    assert all(torch.equal(again.state_dict()[k], theirs[k]) for k in theirs)


def test_training_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    recipe = _tiny(steps=60, batch=32, learning_rate=5e-3)
    _train(recipe, load_dataset("digits"), tmp_path, every=20, progress=lambda s, n, loss: losses.append(loss))
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_the_learning_rate_warms_up_and_comes_down() -> None:
    recipe = _tiny(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert 0.02 <= rates[-1] < 0.03


def test_the_classifier_is_a_function_of_its_recipe_and_learns() -> None:
    data = load_dataset("digits")
    recipe = _tiny(classifier_steps=60, batch=64, classifier_width=8)
    first, second = train_classifier(recipe, data), train_classifier(recipe, data)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert accuracy(first, data) > 0.5


def test_a_trained_entry_is_a_model_and_can_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny"
    figures = train_entry(_tiny(), out, tmp_path / "checkpoints")
    found = find_model(str(out))
    assert (found.name, found.channels, found.size) == ("tiny", 1, 8)
    assert json.loads((out / "card.json").read_text()) == figures
    stored = TrainingRecipe.model_validate_json((out / "recipe.json").read_text())
    assert stored.model_dump_json() == _tiny().model_dump_json()
    card = (out / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert f"{figures['parameters']:,}" in card
    command = f"evaluate --model {out} --schedule ddim/karras@2 --images 250 --out {tmp_path / 'kept'} --json"
    monkeypatch.setattr(sys, "argv", ["fewstep", *command.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "tiny"
    assert answer["value"] > 0
    # The same recipe again gives the same weights.
    train_entry(_tiny(), tmp_path / "twin", tmp_path / "other")
    assert find_model(str(tmp_path / "twin")).hash == found.hash


def test_another_seed_gives_other_weights_under_the_same_classifier(tmp_path: Path) -> None:
    second = _tiny(name="digits-ddpm", steps=2).reseeded(3)
    assert (second.name, second.seed) == ("digits-ddpm-seed3", 3)
    assert second.command == "fewstep train digits-ddpm --seed 3"
    assert _tiny(name="digits-ddpm").command == "fewstep train digits-ddpm"
    train_entry(second, tmp_path / "second", tmp_path / "checkpoints")
    train_entry(second.model_copy(update={"seed": 4}), tmp_path / "third", tmp_path / "more")
    assert find_model(str(tmp_path / "second")).hash != find_model(str(tmp_path / "third")).hash
    own, zoo = (
        root / "classifier" / "model.safetensors" for root in (tmp_path / "second", find_model("digits-ddpm").root)
    )
    assert own.read_bytes() == zoo.read_bytes()


def test_an_unfinished_entry_is_no_pipeline(tmp_path: Path) -> None:
    def cut(stage: str, step: int, total: int, loss: float) -> None:
        assert stage == "network"
        raise _PowerCutError

    with pytest.raises(_PowerCutError):
        train_entry(_tiny(), tmp_path / "out", tmp_path / "checkpoints", progress=cut)
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_the_preconditioned_answer_gives_back_the_image_and_its_input_has_unit_variance() -> None:
    """2206.00364, eq. 7: c_skip x + c_out F is x0, at every sigma."""
    recipe = _tiny(objective="edm", sigma_min=0.01, sigma_max=20.0, sigma_data=0.75)
    objective = objective_of(recipe)
    x0 = 0.75 * torch.randn(4096, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    lesson = objective.draw(x0, torch.Generator().manual_seed(0), "cpu")
    sigma = (4 * lesson.time).exp().view(-1, 1, 1, 1)
    assert 0.01 * 0.999 <= float(sigma.min()) < 1 < float(sigma.max()) <= 20 * 1.001
    x = lesson.shown * (sigma**2 + 0.75**2).sqrt()
    back = objective.scheduler.precondition_outputs(x, lesson.answer, sigma)
    assert torch.allclose(back, x0, atol=1e-4)
    assert float(lesson.shown.var()) == pytest.approx(1, abs=0.02)
    assert float(lesson.answer.var()) == pytest.approx(1, abs=0.02)


def test_every_recipe_builds_and_an_unknown_one_is_answered_with_their_names() -> None:
    for name in RECIPES:
        recipe = training_recipe(name)
        assert recipe.name == name
        assert TrainingRecipe.model_validate_json(recipe.model_dump_json()).steps == recipe.steps
    with pytest.raises(ConfigurationError, match="digits-ddpm"):
        training_recipe("cifar")
