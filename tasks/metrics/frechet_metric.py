"""Frechet distance of features to a reference, and, with a judge, the share of images that show their label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.point import parse_point
from fewstep.tasks.metrics.interval import Interval, frechet_interval, paired_difference, share_interval
from fewstep.tasks.metrics.metric import FeatureMetric, Score, groups
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.models.conditions import NO_LABEL
from fewstep.tasks.models.judge import JudgeNetwork, judge_hash, load_judge
from fewstep.tasks.work import CALLS, Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

# Of a group's sums.
RIGHT = "right"


class FrechetMetric(FeatureMetric):
    """Parts are moments of groups of GROUP images, with their denoiser calls and how many show their label."""

    figure: ClassVar[str] = "frechet"
    grows: ClassVar[bool] = True
    interval: ClassVar[str] = "95%, delete-a-group jackknife over the images"

    def check(self) -> None:
        """The features, the reference and the judge are there, and fit the model."""
        super().check()
        self._judge_on("cpu")

    def prepare(self, worker: Worker) -> None:
        """Load the extractor and the judge."""
        super().prepare(worker)
        self._judge_on(worker.device)

    @property
    def identity(self) -> dict[str, object]:
        """The features and the judge: moments that were stored before there were other metrics keep their address."""
        found: dict[str, object] = {"features": self.setting.extractor.hash}
        return found | ({"judge": judge_hash(self.subject.judge)} if self.subject.judge else {})

    @property
    def standard(self) -> dict[str, object]:
        """The reference; the name is that of what is stored."""
        return {"kind": "moments", "reference": self.reference}

    def measure(self, worker: Worker, task: Task) -> Measured:
        """Moments and sums of each group of the task's images."""
        network, parts = worker.network(parse_point(task.point)), []
        for start, images, calls in groups(worker, task, network):
            sums = {CALLS: calls} | self._judged(worker, images, start)
            parts.append(Part(start, len(images), Moments.of(self.setting.extractor(images)), sums))
        return Measured(tuple(parts), network.figures)

    def _judge_on(self, device: str) -> JudgeNetwork | None:
        judge = self.subject.judge
        if judge and self.subject.conditions.labels == NO_LABEL:
            raise ConfigurationError("a judge needs labels to look for: give --labels balanced or one label")
        if judge and not hasattr(self, "_loaded"):
            self._loaded = load_judge(judge, self.files, device)
        return self._loaded if judge else None

    def _judged(self, worker: Worker, images: Tensor, start: int) -> dict[str, float]:
        """How many of the images start, start + 1, ... the judge takes for what they were asked to be."""
        judge = self._judge_on(worker.device)
        if judge is None:
            return {}
        classes = self.files.classes or 0
        asked = [self.subject.conditions.label(start + i, classes) for i in range(len(images))]
        return {RIGHT: float((judge.labels(images) == torch.tensor(asked)).sum())}

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The distance with the jackknife's interval; mean NFE, and the judge's accuracy with Wilson's."""
        groups = [part.moments for part in parts if part.moments is not None]
        interval = frechet_interval(self.frechet, groups)
        found = self._of_sums(parts)
        if interval is None:
            return Score(self.frechet.distance(merge_all(groups)), figures=found)
        return Score(*interval, found)

    @staticmethod
    def _of_sums(parts: Sequence[Part]) -> dict[str, float]:
        images, found = sum(part.count for part in parts), dict[str, float]()
        if all(CALLS in part.sums for part in parts):
            found["nfe"] = sum(part.sums[CALLS] for part in parts) / images
        if all(RIGHT in part.sums for part in parts):
            share = share_interval(round(sum(part.sums[RIGHT] for part in parts)), images)
            found |= {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}
        return found

    def paired(self, first: Sequence[Part], second: Sequence[Part]) -> Interval | None:
        """The paired difference by the same jackknife."""
        sides = [[part.moments for part in side if part.moments is not None] for side in (first, second)]
        return paired_difference(self.frechet, sides[0], sides[1])
