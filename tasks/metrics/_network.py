"""What the feature extractors share: running a network slice by slice, and the address of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.tasks.metrics.moments import Array


@torch.no_grad()
def in_slices(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int, dim: int, like: Tensor) -> Array:
    """Apply `function` to slices of images (N, ...), moved to the device and type of `like`; (N, dim)."""
    slices = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    parts = [function(part.to(like)).double().cpu().numpy() for part in slices]
    return np.concatenate(parts) if parts else np.empty((0, dim))


def weights_hash(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values of the tensors in `state`, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
