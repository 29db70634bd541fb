"""Inpainting: how far what was made in the holes is from what was hidden there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.agreement import Sums, hidden_rms, hole_sums, known_rms
from fewstep.tasks.metrics.interval import sums_interval
from fewstep.tasks.metrics.metric import Metric, Score
from fewstep.tasks.work import GROUP, Measured, Part, Task

if TYPE_CHECKING:
    from fewstep.tasks.models.sources import Sources
    from fewstep.tasks.worker import Worker


class ShownMetric(Metric):
    """Base of metrics of models that are shown images: sums over groups of GROUP images of how far they keep to them.

    `shown` is the kind of model, see `ModelFiles.shown`.
    """

    grows: ClassVar[bool] = True
    interval: ClassVar[str] = "delete-a-group jackknife over the images"
    shown: ClassVar[str]

    def check(self) -> None:
        """The model is shown what is measured."""
        if self.files.shown != self.shown:
            raise ConfigurationError(
                f"{self.figure} is measured of models of kind {self.shown!r}; {self.files.name} is of kind "
                f"{self.files.shown or 'plain'!r}"
            )

    def sums(self, sources: Sources, made: Tensor, indices: range) -> Sums:
        """The sums of some images."""
        raise NotImplementedError

    def measure(self, worker: Worker, task: Task) -> Measured:
        """The sums of each group of the task's images."""
        self.check()
        sources, parts = worker.exact.sources, []
        assert sources is not None
        for start in range(task.start, task.start + task.count, GROUP):
            count = min(GROUP, task.start + task.count - start)
            made = worker.render(task.point, task.seed, start, count)
            found = self.sums(sources, made, range(start, start + count))
            parts.append(Part(start, count, sums={f"{i:04d}": float(value) for i, value in enumerate(found)}))
        return Measured(tuple(parts))


class HiddenError(ShownMetric):
    """Root mean square error of hidden values in [-1, 1]; that of known ones, which are put back, beside it."""

    figure: ClassVar[str] = "hidden-rms"
    shown: ClassVar[str] = "inpaint"

    def sums(self, sources: Sources, made: Tensor, indices: range) -> Sums:
        """See `hole_sums`."""
        return hole_sums(made, sources.images(indices), sources.holes(indices))

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The error with the jackknife's interval."""
        groups = sums_of(parts)
        total = np.sum(groups, axis=0)
        within = sums_interval(hidden_rms, groups, [part.count for part in parts])
        low, high = (within.low, within.high) if within else (None, None)
        return Score(hidden_rms(total), low, high, {"known_rms": known_rms(total)})


def sums_of(parts: Sequence[Part]) -> list[Sums]:
    """The sums of parts, in the order in which they were measured."""
    return [np.array([part.sums[name] for name in sorted(part.sums)]) for part in parts]
