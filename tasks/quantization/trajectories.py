"""Calibration data: what a network is given along its own full-precision trajectories.

One pass: N trajectories of a T-call schedule cost N T denoiser calls. Shapes: x (M, C, H, W), time (M,),
labels (M,) or condition (M, L, D), where M = N times the calls that are used, trajectories innermost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import EvaluationError
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.quantization.network import ARGUMENTS
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise

Batch = dict[str, Tensor]


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Batch]]:
    """The inputs of every forward pass of a diffusers network while the block lasts."""
    import inspect

    signature, seen = inspect.signature(module.forward), list[Batch]()

    def remember(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        bound = signature.bind(*arguments, **named).arguments
        found = {
            ours: bound[name]
            for ours, theirs in ARGUMENTS.items()
            for name in theirs
            if isinstance(bound.get(name), Tensor)
        }
        found["time"] = found["time"].expand(len(found["x"]))
        seen.append({name: value.detach().clone() for name, value in found.items()})

    handle = module.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def collect(
    denoiser: Denoiser,
    schedule: SolverSchedule,
    config: QuantizationConfig,
    statistics: ModelStatistics | None = None,
    batch: int = 64,
) -> Batch:
    """Inputs along the trajectories of images 0 .. config.images - 1 under the config's seed.

    Of a schedule with more calls than `config.steps` that many are used, evenly spaced, the first and last
    among them. Raises EvaluationError where a trajectory is not finite.
    """
    with torch.inference_mode():
        data = _recorded_data(denoiser, schedule, config, statistics, batch)
    if not all(bool(torch.isfinite(value).all()) for value in data.values()):
        raise EvaluationError(f"schedule {schedule.hash} explodes on this model: calibrate with one that does not")
    # Ordinary tensors: gradients of the rounding go through what is computed from them.
    return {name: value.clone() for name, value in data.items()}


def _recorded_data(
    denoiser: Denoiser,
    schedule: SolverSchedule,
    config: QuantizationConfig,
    statistics: ModelStatistics | None,
    batch: int,
) -> Batch:
    files = denoiser.files
    tables = compile_schedule(schedule, files.noise, files.prediction_type, statistics)
    program, pieces = Program(tables, denoiser.device), list[list[Batch]]()
    for first in range(0, config.images, batch):
        size = min(batch, config.images - first)
        x = starting_noise(config.seed, first, size, files.shape, denoiser.device) * tables.prior_scale
        with recorded(denoiser.network.module) as seen:
            program(denoiser.on(range(first, first + size), schedule.guidance, schedule.skips), x)
        pieces.append(seen)
    used = chosen_steps(len(pieces[0]), config.steps)
    return {name: torch.cat([seen[k][name] for k in used for seen in pieces]) for name in pieces[0][0]}


def chosen_steps(calls: int, wanted: int) -> list[int]:
    """Which of `calls` steps are used: all, or `wanted` evenly spaced ones."""
    if wanted in (0, 1) or wanted >= calls:
        return list(range(calls)) if wanted != 1 else [0]
    return sorted({round(i * (calls - 1) / (wanted - 1)) for i in range(wanted)})


def moments_of_block(data: Batch) -> Batch:
    """The distinct inputs of the temporal information block in the data: time (R,), and labels (R,) if any."""
    if "labels" not in data:
        return {"time": torch.unique(data["time"])}
    pairs = torch.unique(torch.stack([data["time"].double(), data["labels"].double()], 1), dim=0)
    return {"time": pairs[:, 0].to(data["time"].dtype), "labels": pairs[:, 1].to(data["labels"].dtype)}


def batches(data: Batch, size: int) -> Iterator[Batch]:
    """The data in slices."""
    for first in range(0, len(data["x"]), size):
        yield {name: value[first : first + size] for name, value in data.items()}
