"""Train a judge on a data set's training split, and measure it on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fewstep.tasks.data import Dataset, load_dataset
from fewstep.tasks.metrics.moments import Moments, save_npz
from fewstep.tasks.metrics.spaces.judged import REFERENCE_FILE, JudgeFeatures
from fewstep.tasks.models.judge import JudgeNetwork

Show = Callable[[str, int, int, float], None]
CARD_FILE = "card.json"


class JudgeRecipe(BaseModel):
    """How a judge is trained: SGD with momentum, one cycle of the rate, shifts up to `shift` pixels, mirroring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    width: PositiveInt = 16
    steps: PositiveInt = 4000
    batch: PositiveInt = 128
    rate: float = Field(0.1, gt=0)
    decay: float = Field(5e-4, ge=0)
    shift: NonNegativeInt = 2
    flip: bool = True
    seed: NonNegativeInt = 4242


JUDGE_RECIPES = {
    "fashion-judge": JudgeRecipe(name="fashion-judge", dataset="fashion"),
    "digits-judge": JudgeRecipe(name="digits-judge", dataset="digits", width=8, steps=800, shift=1, flip=False),
}


def train_judge(recipe: JudgeRecipe, out: Path, device: str = "cpu", show: Show | None = None) -> dict[str, Any]:
    """Write the judge of a recipe to `out`, and return its figures, which `card.json` there holds too.

    Raises DataError where the data set is not installed.
    """
    data = load_dataset(recipe.dataset)
    model = fit(recipe, data, device, show)
    model.save(out)
    features = JudgeFeatures(str(out), None, device)
    save_npz(out / REFERENCE_FILE, Moments.of(features(torch.from_numpy(data.images))))
    held_out = load_dataset(recipe.dataset, "test")
    right = float((model.labels(torch.from_numpy(held_out.images).to(device)).numpy() == held_out.labels).mean())
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": round(right, 4),
        # The digits are too few to hold any back.
        "accuracy_on": "its own training set" if recipe.dataset == "digits" else "the test split",
        "images": len(held_out.labels),
        "recipe": recipe.model_dump(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    (out / CARD_FILE).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def fit(recipe: JudgeRecipe, data: Dataset, device: str = "cpu", show: Show | None = None) -> JudgeNetwork:
    """Cross-entropy with label smoothing; the network in evaluation mode."""
    torch.manual_seed(recipe.seed)
    channels, size = data.images.shape[1], data.images.shape[2]
    model = JudgeNetwork(channels, size, len(data.classes), recipe.width).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for step in range(recipe.steps):
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        index = torch.randint(0, len(images), (recipe.batch,), generator=rng)
        x = _moved(images[index], recipe, rng).to(device)
        loss = nn.functional.cross_entropy(model(x), labels[index].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()
        if show and (step + 1) % 200 == 0:
            show("judge", step + 1, recipe.steps, float(loss.detach()))
    return model.eval().requires_grad_(False)


def _moved(x: Tensor, recipe: JudgeRecipe, rng: torch.Generator) -> Tensor:
    """The batch (B, C, H, W), half of it shifted by one common draw, half of that half mirrored."""
    half = len(x) // 2
    shift = torch.randint(-recipe.shift, recipe.shift + 1, (2,), generator=rng).tolist()
    moved = torch.roll(x[:half], shift, dims=(2, 3))
    if recipe.flip:
        moved = torch.cat([moved[: half // 2].flip(3), moved[half // 2 :]])
    return torch.cat([moved, x[half:]])
