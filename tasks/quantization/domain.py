"""All that a temporal information block can be asked: a model's training timesteps and its labels.

TFMQ-DM (2311.16503, section 4.2) rests on t coming from a finite set. The set is that of training, not that of the
schedule at hand: a block that is fitted on it holds under every schedule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.noise_families import VarianceExploding
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule
from fewstep.tasks.quantization.trajectories import Batch, moments_of_block

# Where a model knows no discrete timesteps, or labels are many: how many times, and how many rows of both together.
TIMES, ROWS = 1000, 8192


def training_times(noise: NoiseSchedule, count: int = TIMES) -> Tensor:
    """Times (T,) that the network is told, rising: all of training's where they are finitely many, else evenly spaced.

    Even in the time itself, but in lambda where that is sigma, whose range is a matter of magnitudes.
    """
    if isinstance(noise, DiscreteVP):
        return torch.arange(len(noise.log_alphas), dtype=torch.float32)
    first, last = noise.lambda_start, noise.lambda_end
    if isinstance(noise, VarianceExploding) and math.isfinite(first):
        found = [noise.time(first + (last - first) * k / (count - 1)) for k in range(count)]
        return _distinct(torch.tensor(found, dtype=torch.float32))
    return _distinct(torch.linspace(noise.time(first), noise.time(last), count))


def _distinct(values: Tensor) -> Tensor:
    found: Tensor = torch.unique(values)
    return found


def all_labels(files: ModelFiles) -> Tensor | None:
    """Every label (L,), the null one among them; None for a model without."""
    if files.classes is None:
        return None
    count = files.classes if files.null_label is None else max(files.classes, files.null_label + 1)
    return torch.arange(count)


def block_domain(files: ModelFiles, data: Batch, seed: int, rows: int = ROWS) -> Batch:
    """Inputs of the block, time (R,) and labels (R,): all pairs, or `rows` of them, and those of the data.

    Of too many pairs a Latin square is taken: every time and every label as often as any other.
    """
    own = moments_of_block(data)
    times = training_times(files.noise).to(own["time"])
    labels = all_labels(files) if "labels" in own else None
    if labels is None:
        return {"time": torch.unique(torch.cat([times, own["time"]]))}
    labels = labels.to(own["labels"])
    pairs = torch.cartesian_prod(times.double().cpu(), labels.double().cpu())
    if len(pairs) > rows:
        rng = torch.Generator().manual_seed(seed)
        place, shuffled = torch.arange(rows), torch.randperm(len(labels), generator=rng)
        spread = place * len(times) // rows if rows > len(times) else _spread(len(times), rows)
        drawn = times.cpu()[spread], labels.cpu()[shuffled[place % len(labels)]]
        pairs = torch.stack([values.double() for values in drawn], 1)
    seen = torch.stack([own["time"].double(), own["labels"].double()], 1).cpu()
    pairs = torch.unique(torch.cat([pairs, seen]), dim=0).to(own["time"].device)
    return {"time": pairs[:, 0].to(own["time"].dtype), "labels": pairs[:, 1].to(own["labels"].dtype)}


def _spread(count: int, rows: int) -> Tensor:
    """Evenly spaced indices, the first and the last among them."""
    return torch.linspace(0, count - 1, rows).round().long()
