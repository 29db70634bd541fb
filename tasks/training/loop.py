"""The one training loop: clipped AdamW steps, an averaged copy, and any kill loses at most one checkpoint interval.

Step k draws everything from a generator seeded by (seed, k): a run that was killed and resumed sees the same
data as one that was not. A batch may be computed in parts, one after the other or on several processes.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, DataError, StorageError
from fewstep.files import patiently
from fewstep.tasks.faults import first_line
from fewstep.tasks.training.processes import Processes
from fewstep.tasks.training.recipe import Optimisation

Progress = Callable[[int, int, float], None]
# The mean loss on a part of a batch.
Loss = Callable[[slice], Tensor]
CHECKPOINT = "training.pt"
# What of a recipe may change between two runs of one training: it decides about nothing, or only about when to stop.
FREE = ("name", "steps", "accumulate", "checkpointing", "save_every")
M = TypeVar("M", bound=nn.Module)


class _Step(nn.Module):
    """A model whose call is a loss of its: what is wrapped for several processes has one call, a model has many."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Loss, part: slice) -> Tensor:
        """The loss, which calls the model."""
        return loss(part)


def fit(
    model: M,
    lessons: Callable[[torch.Generator], Loss],
    plan: Optimisation,
    folder: Path,
    every: int | None = None,
    progress: Progress | None = None,
    source: str = "",
    processes: Processes | None = None,
) -> M:
    """Minimise a loss from the start or from `folder`'s checkpoint; return the averaged model in evaluation mode.

    `lessons(generator)` draws one batch, a function of the generator's state (on the CPU), and answers with the mean
    loss of `model` on a part of it. `progress(step, steps, mean loss)` is called every `every` steps (by default the
    plan's), after the checkpoint is on disk. `source` names what the data were made by. ConfigurationError where the
    checkpoint is one of other data or of another plan, or where the batch has no equal parts.
    """
    here = processes or Processes(str(next(model.parameters()).device))
    every = every or plan.save_every
    parts = _parts(plan, here)
    model.train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    start = _resume(folder / CHECKPOINT, model, average, optimizer, plan, source)
    call = here.wrap(_Step(model))
    device = torch.device(here.device).type
    losses: list[float] = []
    for step in range(start, plan.steps):
        # For dropout, the one thing that draws elsewhere.
        torch.manual_seed((plan.seed * 1_000_003 + step) * 1_009 + here.rank)
        loss = lessons(torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        optimizer.zero_grad(set_to_none=True)
        found = 0.0
        for part in parts:
            with (
                nullcontext() if part is parts[-1] else here.apart(call),
                torch.autocast(device, torch.bfloat16, enabled=plan.precision == "bfloat16"),
            ):
                value = call(loss, part) / len(parts)
            value.backward()
            found += value.item()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        _follow(average, model, min(plan.ema, (1 + step) / (10 + step)))
        losses.append(found)
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
            state |= {"optimizer": optimizer.state_dict(), "source": source, "plan": plan.model_dump(mode="json")}
            if here.first:
                _save(folder / CHECKPOINT, state)
            here.wait()
            mean = here.mean(sum(losses) / len(losses))
            if progress:
                progress(step + 1, plan.steps, mean)
            losses.clear()
    return average


def _parts(plan: Optimisation, here: Processes) -> list[slice]:
    """The parts of each batch that this process computes, all of one size."""
    count = here.count * plan.accumulate
    if plan.batch % count:
        raise ConfigurationError(
            f"batch {plan.batch} has no {count} equal parts ({here.count} processes, accumulate {plan.accumulate}): "
            "choose a multiple"
        )
    size = plan.batch // count
    return [slice(size * i, size * (i + 1)) for i in range(here.rank, count, here.count)]


def _resume(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Optimisation,
    source: str,
) -> int:
    """Load a checkpoint where there is one; the step to go on from."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    # A damaged file is answered with whatever breaks first.
    except Exception as error:
        raise DataError(
            f"the checkpoint {path} cannot be read ({first_line(error)}): remove it to begin anew"
        ) from error
    if state.get("source", "") != source:
        raise ConfigurationError(
            f"the checkpoint in {path.parent} was trained on the latents of another autoencoder, or on other data: "
            "give another folder for checkpoints, or remove it"
        )
    now, past = plan.model_dump(mode="json"), state.get("plan", {})
    if others := [name for name in past if name not in FREE and past[name] != now.get(name)]:
        told = ", ".join(f"{name} {past[name]} is now {now.get(name)}" for name in others)
        raise ConfigurationError(
            f"the checkpoint in {path.parent} is of another recipe ({told}): put it back, give another folder for "
            "checkpoints, or remove it"
        )
    # Called `unet` before there were other networks.
    model.load_state_dict(state["model"] if "model" in state else state["unet"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def learning_rate(plan: Optimisation, step: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the plan's rate."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    share = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _save(path: Path, state: dict[str, Any]) -> None:
    aside = path.with_suffix(".tmp")

    def write() -> None:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)

    try:
        patiently(write, f"cannot write {path}")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
