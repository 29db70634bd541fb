"""The one training loop: clipped AdamW steps, an averaged copy, and any kill loses at most one checkpoint interval.

Step k draws everything from a generator seeded by (seed, k): a run that was killed and resumed sees the same
data as one that was not.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError
from fewstep.tasks.training.recipe import Optimisation

Progress = Callable[[int, int, float], None]
CHECKPOINT = "training.pt"
M = TypeVar("M", bound=nn.Module)


def fit(
    model: M,
    loss: Callable[[torch.Generator], Tensor],
    plan: Optimisation,
    folder: Path,
    every: int = 500,
    progress: Progress | None = None,
    source: str = "",
) -> M:
    """Minimise `loss` from the start or from `folder`'s checkpoint; return the averaged model in evaluation mode.

    `loss(generator)` is the loss of `model` on one batch, a function of the generator's state (on the CPU).
    `progress(step, steps, mean loss)` is called every `every` steps, after the checkpoint is on disk. `source` names
    what the data were made by. ConfigurationError where the checkpoint's data were made by another.
    """
    model.train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    if (folder / CHECKPOINT).exists():
        device = next(model.parameters()).device
        state = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
        if state.get("source", "") != source:
            raise ConfigurationError(
                f"the checkpoint in {folder} was trained on the latents of another autoencoder: "
                "give another folder for checkpoints, or remove it"
            )
        # Called `unet` before there were other networks.
        model.load_state_dict(state["model"] if "model" in state else state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    losses: list[float] = []
    for step in range(start, plan.steps):
        value = loss(torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        _follow(average, model, min(plan.ema, (1 + step) / (10 + step)))
        losses.append(value.item())
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
            _save(folder / CHECKPOINT, state | {"optimizer": optimizer.state_dict(), "source": source})
            if progress:
                progress(step + 1, plan.steps, sum(losses) / len(losses))
            losses.clear()
    return average


def learning_rate(plan: Optimisation, step: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the plan's rate."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    share = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _save(path: Path, state: dict[str, Any]) -> None:
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
