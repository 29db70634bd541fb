"""A metric of each image alone, higher being better: how much it differs from what is around each pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fewstep.tasks.metrics.grouped import MeanMetric
from fewstep.tasks.work import Task

LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


class Sharpness(MeanMetric):
    """Minus the mean over images of the standard deviation of their Laplacian."""

    figure: ClassVar[str] = "neg-sharpness"
    higher: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    quality: ClassVar[str] = "sharpness"

    def values(self, worker: Any, images: Any, task: Task, start: int) -> Any:
        """Of each image."""
        grey = images.float().mean(1, keepdim=True)
        found = torch.nn.functional.conv2d(grey, LAPLACE.to(grey)[None, None])
        return found.flatten(1).std(dim=1).double().cpu().numpy()
