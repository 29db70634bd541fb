"""Train a diffusers UNet2DModel, so that any kill loses at most one checkpoint interval.

Step k draws its batch, times and noise from a generator seeded by (seed, k): a run that was killed
and resumed sees the same data as one that was not.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fewstep.tasks.data import Dataset
from fewstep.tasks.training.objectives import objective_of
from fewstep.tasks.training.recipe import TrainingRecipe

Progress = Callable[[int, int, float], None]
CHECKPOINT = "training.pt"


def learning_rate(recipe: TrainingRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the recipe's rate."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _save(path: Path, state: dict[str, Any]) -> None:
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)


def train_unet(
    recipe: TrainingRecipe,
    data: Dataset,
    folder: Path,
    device: str = "cpu",
    every: int = 500,
    progress: Progress | None = None,
) -> tuple[UNet2DModel, Any]:
    """Train from scratch or from `folder`'s checkpoint; return the averaged network and its scheduler.

    `progress(step, steps, mean loss)` is called every `every` steps, after the checkpoint is on disk.
    """
    torch.manual_seed(recipe.seed)
    unet = UNet2DModel(**recipe.unet).to(device).train()
    objective = objective_of(recipe)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    if (folder / CHECKPOINT).exists():
        state = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    losses: list[float] = []
    for step in range(start, recipe.steps):
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x0, label = _batch(recipe, images, labels, rng)
        lesson = objective.draw(x0, rng, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        answer = unet(lesson.shown, lesson.time, None if label is None else label.to(device)).sample
        loss = nn.functional.mse_loss(answer, lesson.answer)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(unet.parameters(), recipe.clip)
        optimizer.step()
        _follow(average, unet, min(recipe.ema, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            state = {"unet": unet.state_dict(), "average": average.state_dict(), "step": step + 1}
            _save(folder / CHECKPOINT, state | {"optimizer": optimizer.state_dict()})
            if progress:
                progress(step + 1, recipe.steps, sum(losses) / len(losses))
            losses.clear()
    return average, objective.scheduler


def _batch(
    recipe: TrainingRecipe, images: Tensor, labels: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    index = torch.randint(0, len(images), (recipe.batch,), generator=rng)
    x0 = images[index]
    if recipe.flip:
        mirrored = torch.rand(recipe.batch, generator=rng) < 0.5
        x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)
    if recipe.label_dropout is None:
        return x0, None
    dropped = torch.rand(recipe.batch, generator=rng) < recipe.label_dropout
    null = int(recipe.unet["num_class_embeds"]) - 1
    return x0, torch.where(dropped, torch.tensor(null), labels[index])


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
