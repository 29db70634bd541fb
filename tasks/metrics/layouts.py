"""Layouts: how far the layout of what was made agrees with the one that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from fewstep.tasks.metrics.agreement import Sums, layout_sums, mean_iou, pixel_accuracy
from fewstep.tasks.metrics.holes import ShownMetric, sums_of
from fewstep.tasks.metrics.interval import sums_interval
from fewstep.tasks.metrics.metric import Score
from fewstep.tasks.models.image_condition import layout_of
from fewstep.tasks.work import Part

if TYPE_CHECKING:
    from fewstep.tasks.models.sources import Sources


def disagreement(sums: Sums) -> float:
    """1 - the mean over classes of intersection over union."""
    return 1 - mean_iou(sums)


class LayoutDisagreement(ShownMetric):
    """1 - mean intersection over union of the classes; the share of pixels of the right class beside it."""

    figure: ClassVar[str] = "layout-disagreement"
    shown: ClassVar[str] = "layout"

    def sums(self, sources: Sources, made: Tensor, indices: range) -> Sums:
        """See `layout_sums`."""
        assert self.files.condition is not None
        edges, classes = self.files.condition.thresholds, self.files.condition.classes
        return layout_sums(layout_of(made, edges), sources.layouts(indices), classes)

    def score(self, parts: Sequence[Part], figures: Mapping[str, float]) -> Score:
        """The disagreement with the jackknife's interval."""
        groups = sums_of(parts)
        total = np.sum(groups, axis=0)
        within = sums_interval(disagreement, groups, [part.count for part in parts])
        low, high = (within.low, min(1.0, within.high)) if within else (None, None)
        return Score(disagreement(total), low, high, {"pixel_accuracy": pixel_accuracy(total)})
