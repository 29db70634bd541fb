"""Train a diffusers UNet2DModel or DiTTransformer2DModel on images or latents, shown a condition or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.tasks.models.image_condition import ImageCondition
from fewstep.tasks.training.examples import Examples, Maps
from fewstep.tasks.training.loop import Loss, Progress, fit
from fewstep.tasks.training.networks import build_network, start_from
from fewstep.tasks.training.objectives import objective_of
from fewstep.tasks.training.processes import Processes
from fewstep.tasks.training.recipe import TrainingRecipe


class Trained(NamedTuple):
    """The averaged network, its scheduler, and the averaged condition of a network that is shown one."""

    network: Any
    scheduler: Any
    condition: ImageCondition | None = None


class Shown(nn.Module):
    """A network and its condition, which are trained as one."""

    def __init__(self, network: Any, condition: ImageCondition) -> None:
        super().__init__()
        self.network, self.condition = network, condition

    def forward(self, x: Tensor, maps: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """The network's output (B, c, h, w) for latents (B, c, h, w) and maps (B, m, h, w)."""
        output: Tensor = self.network(torch.cat([x, self.condition(maps)], 1), time, label).sample
        return output


def train_network(
    recipe: TrainingRecipe,
    examples: Examples,
    labels: Tensor,
    folder: Path,
    device: str = "cpu",
    every: int | None = None,
    progress: Progress | None = None,
    start: Any = None,
    maps: Maps | None = None,
    processes: Processes | None = None,
) -> Trained:
    """Train from scratch, from the network `start` or from `folder`'s checkpoint.

    `labels` (N,) are those of the examples, `maps` what a recipe with a condition shows of them.
    `progress(step, steps, mean loss)` is called every `every` steps, after the checkpoint is on disk.
    """
    network = build_network(recipe)
    if start is not None:
        start_from(network, start)
    network.to(device)
    if recipe.checkpointing:
        network.enable_gradient_checkpointing()
    objective = objective_of(recipe)
    source = examples.source
    if maps is not None:
        shown = Shown(network, maps.condition.to(device))

    def lessons(rng: torch.Generator) -> Loss:
        index, x0, label = draw_batch(recipe, examples, labels, rng)
        lesson = objective.draw(x0, rng, device)
        told = None if label is None else label.to(device)
        seen = None if maps is None else maps.draw(index, rng).to(device)

        def loss(part: slice) -> Tensor:
            x, time, label = lesson.shown[part], lesson.time[part], None if told is None else told[part]
            answer = network(x, time, label).sample if seen is None else shown(x, seen[part], time, label)
            return nn.functional.mse_loss(answer, lesson.answer[part])

        return loss

    if maps is None:
        trained = fit(network, lessons, recipe, folder, every, progress, source, processes)
        return Trained(trained, objective.scheduler)
    average = fit(shown, lessons, recipe, folder, every, progress, source, processes)
    return Trained(average.network, objective.scheduler, average.condition)


def draw_batch(
    recipe: TrainingRecipe, examples: Examples, labels: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Numbers (B,) of examples, the examples (B, C, H, W), their labels (B,), some of them null; None without labels.

    A transformer is always told a label: without labels it is the null label.
    """
    index = torch.randint(0, len(examples), (recipe.batch,), generator=rng)
    mirrored = torch.rand(recipe.batch, generator=rng) < 0.5 if recipe.flip else None
    x0 = examples.draw(index, mirrored, rng)
    if recipe.label_dropout is None:
        null = torch.full((recipe.batch,), recipe.null_label or 0)
        return index, x0, null if recipe.transformer is not None else None
    dropped = torch.rand(recipe.batch, generator=rng) < recipe.label_dropout
    return index, x0, torch.where(dropped, torch.tensor(recipe.null_label), labels[index])
