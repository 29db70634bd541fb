"""Paired perceptual distance to the teacher: how far images are from what many steps make of the same noise.

For each image the squared distance of its features to those of the teacher's image, both of unit length, within 0 and 4
(as LPIPS takes unit features of one layer; Zhang et al. 2018, equation 1). The features are the subject's or the
argument's; those of several layers, one after the other, are a callable's to give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.tasks.metrics.grouped import MeanMetric
from fewstep.tasks.metrics.metric import FeatureMetric
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.work import Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker


class Perceptual(FeatureMetric, MeanMetric):
    """The mean of the distances. The teacher samples with the model's own network in full precision, once a worker."""

    figure: ClassVar[str] = "perceptual"
    taught: ClassVar[bool] = True
    least: ClassVar[float] = 0.0

    def check(self) -> None:
        """The features are there; it has no reference but the teacher."""
        assert self.setting.extractor.dim

    @property
    def standard(self) -> dict[str, object]:
        """Nothing but its name."""
        return {"kind": self.figure}

    @property
    def reference(self) -> str:
        """None but the teacher."""
        return ""

    def values(self, worker: Worker, images: Tensor, task: Task, start: int) -> Array:
        """Each image's distance."""
        held: dict[object, Array] = self.__dict__.setdefault("_held", {})
        key = (task.arguments["teacher"], task.seed, start, len(images))
        if key not in held:
            made = worker.render(task.arguments["teacher"], task.seed, start, len(images), worker.exact)
            held[key] = unit(self.setting.extractor(made))
        found: Array = np.square(unit(self.setting.extractor(images)) - held[key]).sum(axis=1)
        return found


def unit(features: Array) -> Array:
    """Features (N, D), each of length 1."""
    found: Array = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return found
