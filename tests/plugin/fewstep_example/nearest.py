"""A metric of each image and the reference's: how far its features are from the nearest real ones."""

from __future__ import annotations

from typing import Any, ClassVar

from scipy.spatial.distance import cdist

from fewstep.tasks.metrics.grouped import MeanMetric
from fewstep.tasks.metrics.metric import SampleMetric
from fewstep.tasks.work import Task


class Nearest(SampleMetric, MeanMetric):
    """The mean distance."""

    figure: ClassVar[str] = "nearest"
    least: ClassVar[float] = 0.0

    def values(self, worker: Any, images: Any, task: Task, start: int) -> Any:
        """Of each image."""
        return cdist(self.setting.extractor(images), self.setting.samples[0]).min(axis=1)
