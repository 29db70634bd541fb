"""The judge: it learns, it is found, it fits its model, and it is not the network that makes the features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.judge import JUDGES, JudgeNetwork, find_judge, judge_hash, load_judge
from fewstep.tasks.training.judge import JUDGE_RECIPES, fit, train_judge


def test_it_learns_the_same_each_time_and_comes_back_from_disk(tmp_path: Path) -> None:
    recipe = JUDGE_RECIPES["digits-judge"].model_copy(update={"steps": 80, "width": 4})
    figures = train_judge(recipe, tmp_path / "judge")
    assert figures["accuracy"] > 0.8
    assert json.loads((tmp_path / "judge" / "card.json").read_text())["recipe"]["seed"] == recipe.seed
    loaded = load_judge(str(tmp_path / "judge"))
    images = torch.from_numpy(load_dataset("digits").images[:300])
    again = fit(recipe, load_dataset("digits"))
    assert torch.equal(loaded.labels(images), again.labels(images))
    # Cut into batches or not, each image is judged alone.
    assert torch.equal(loaded.labels(images)[280:], loaded.labels(images[280:]))


def test_the_bundled_judge_fits_the_fashion_models_and_is_small() -> None:
    files = find_model("fashion-ddpm")
    judge = load_judge("fashion", files)
    card = json.loads((JUDGES / "fashion" / "card.json").read_text())
    assert card["accuracy"] > 0.9
    assert card["parameters"] == sum(p.numel() for p in judge.parameters())
    assert sum(path.stat().st_size for path in (JUDGES / "fashion").iterdir()) < 500_000
    assert not judge.training


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give one of digits, fashion"):
        find_judge("nobody")
    with pytest.raises(ConfigurationError, match="10 classes of 1x28"):
        load_judge("fashion", find_model("digits-ddpm"))
    JudgeNetwork(1, 8, 10, 4).save(tmp_path)
    first = judge_hash(str(tmp_path))
    JudgeNetwork(1, 8, 10, 8).save(tmp_path)
    assert judge_hash(str(tmp_path)) != first
    (tmp_path / "config.json").write_text('{"channels": 1, "size": 8, "classes": 10, "width": 4}')
    with pytest.raises(ModelError, match="no usable judge"):
        load_judge(str(tmp_path))
