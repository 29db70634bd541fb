"""Weights that are not finite, told where they are loaded: later they look like a fault of what is sampled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fewstep.errors import FewstepError, ModelError


def check_finite(module: nn.Module, where: Path | str, error: type[FewstepError] = ModelError) -> None:
    """`error` names the first parameter or buffer of the module that is not finite."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise error(f"{where}: the weights of {name} are not finite: the file is damaged or training diverged")
