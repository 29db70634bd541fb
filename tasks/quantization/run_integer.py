"""Put the integer execution of a stored network into a denoiser."""

from __future__ import annotations

from pathlib import Path

import torch

from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.quantization.integer import IntegerNetwork
from fewstep.tasks.quantization.storage import from_pretrained

EXAMPLE_SEED = 0


def integer_module(folder: Path | str, denoiser: Denoiser, batch: int) -> IntegerNetwork:
    """The network of `folder`, compiled for batches of `batch` images, to be called as the denoiser's module is.

    Raises as `IntegerNetwork.build` does: ConfigurationError without OpenVINO, ModelError where 8-bit integers do
    not hold the network.
    """
    files, condition = denoiser.files, denoiser.network.condition(denoiser.conditions, range(2))
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)
    middle = files.noise.time(0.0)
    example = {"x": torch.randn(2, *files.shape, generator=generator), "time": torch.full((2,), float(middle))}
    if condition is not None:
        example["condition" if files.text else "labels"] = condition
    return IntegerNetwork.build(from_pretrained(folder), example, (batch,))
