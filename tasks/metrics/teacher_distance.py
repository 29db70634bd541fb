"""Paired distance to what a many-step sampler makes of the same noise: cheap, and no final judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.errors import EvaluationError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.metric import FeatureMetric, Score
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.work import Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

Z = 1.96


class TeacherDistance(FeatureMetric):
    """Distances in features and in pixels, one of each an image; the argument `teacher` is a schedule (JSON).

    The teacher samples with the model's own network in full precision, once a worker.
    """

    figure: ClassVar[str] = "teacher-distance"
    standalone: ClassVar[bool] = False
    taught: ClassVar[bool] = True
    interval: ClassVar[str] = "95%, normal over the images"

    @property
    def identity(self) -> dict[str, object]:
        """The features alone, as addresses that are stored have it."""
        return {"features": self.setting.extractor.hash}

    @property
    def standard(self) -> dict[str, object]:
        """The reference counts too, as it always has: keys that were stored stay what they are."""
        return {"kind": "distance", "reference": self.reference}

    def measure(self, worker: Worker, task: Task) -> Measured:
        """Distances of all images of the task."""
        target, target_features = self._teacher(worker, task)
        point = parse_point(task.point)
        network = worker.network(point)
        images = worker.render(point, task.seed, task.start, task.count, network.denoiser)
        pixel = (images - target).double().square().mean(dim=(1, 2, 3)).sqrt().cpu().numpy()
        feature = np.linalg.norm(self.setting.extractor(images) - target_features, axis=1)
        values = {"pixel": np.asarray(pixel, np.float64), "feature": feature}
        return Measured((Part(task.start, task.count, values=values),), network.figures)

    def _teacher(self, worker: Worker, task: Task) -> tuple[Tensor, Array]:
        held: dict[object, tuple[Tensor, Array]] = self.__dict__.setdefault("_held", {})
        key = (task.arguments["teacher"], task.seed, task.start, task.count)
        if key not in held:
            images = worker.render(task.arguments["teacher"], task.seed, task.start, task.count, worker.exact)
            held[key] = images, self.setting.extractor(images)
        return held[key]

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The mean distance in features; both means by name."""
        feature = np.concatenate([part.values["feature"] for part in parts])
        pixel = np.concatenate([part.values["pixel"] for part in parts])
        value, error = float(feature.mean()), float(feature.std() / np.sqrt(len(feature)))
        if not np.isfinite(value):
            raise EvaluationError("the distance to the teacher is not finite")
        found = {"feature_distance": value, "pixel_distance": float(pixel.mean())}
        return Score(value, value - Z * error, value + Z * error, found)
