"""A feature space: how much images rise and fall in each of four by four fields. It has no weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from fewstep.tasks.metrics.spaces.kind import FeatureKind

FIELDS = 4


class Gradients:
    """What `FeatureExtractor` asks for; `hash` is that of this file, which decides about every value."""

    name = "fid-gradients"
    hash = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def __init__(self, channels: int) -> None:
        self.dim = 2 * channels * FIELDS**2

    def __call__(self, images: Any) -> Any:
        """Features (N, 2 C FIELDS^2), float64."""
        rises = [torch.diff(images.double(), dim=dim).abs() for dim in (2, 3)]
        pooled = [torch.nn.functional.adaptive_avg_pool2d(r, FIELDS).flatten(1) for r in rises]
        return torch.cat(pooled, dim=1).cpu().numpy()


def make(argument: str, files: Any, device: str) -> Gradients:
    """The space for a model's images."""
    return Gradients(files.channels)


GRADIENTS = FeatureKind(make)
