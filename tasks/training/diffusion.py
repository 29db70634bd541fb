"""Train a diffusers UNet2DModel or DiTTransformer2DModel on images or latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.tasks.training.examples import Examples
from fewstep.tasks.training.loop import Progress, fit
from fewstep.tasks.training.networks import build_network
from fewstep.tasks.training.objectives import objective_of
from fewstep.tasks.training.recipe import TrainingRecipe


def train_network(
    recipe: TrainingRecipe,
    examples: Examples,
    labels: Tensor,
    folder: Path,
    device: str = "cpu",
    every: int = 500,
    progress: Progress | None = None,
) -> tuple[Any, Any]:
    """Train from scratch or from `folder`'s checkpoint; return the averaged network and its scheduler.

    `labels` (N,) are those of the examples. `progress(step, steps, mean loss)` is called every `every` steps,
    after the checkpoint is on disk.
    """
    network = build_network(recipe).to(device)
    objective = objective_of(recipe)

    def loss(rng: torch.Generator) -> Tensor:
        x0, label = draw_batch(recipe, examples, labels, rng)
        lesson = objective.draw(x0, rng, device)
        answer = network(lesson.shown, lesson.time, None if label is None else label.to(device)).sample
        return nn.functional.mse_loss(answer, lesson.answer)

    return fit(network, loss, recipe, folder, every, progress, examples.source), objective.scheduler


def draw_batch(
    recipe: TrainingRecipe, examples: Examples, labels: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Examples (B, C, H, W) and their labels (B,), some of which are the null label; None without labels.

    A transformer is always told a label: without labels it is the null label.
    """
    index = torch.randint(0, len(examples), (recipe.batch,), generator=rng)
    mirrored = torch.rand(recipe.batch, generator=rng) < 0.5 if recipe.flip else None
    x0 = examples.draw(index, mirrored, rng)
    if recipe.label_dropout is None:
        return x0, torch.full((recipe.batch,), recipe.null_label or 0) if recipe.transformer is not None else None
    dropped = torch.rand(recipe.batch, generator=rng) < recipe.label_dropout
    return x0, torch.where(dropped, torch.tensor(recipe.null_label), labels[index])
