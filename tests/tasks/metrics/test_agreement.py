"""Agreement with what images were conditioned on: sums add up to errors, accuracy and overlap, with an interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.tasks.metrics.agreement import (
    hidden_rms,
    hole_sums,
    known_rms,
    layout_sums,
    mean_iou,
    pixel_accuracy,
)
from fewstep.tasks.metrics.interval import sums_interval


def test_sums_give_errors_accuracy_and_overlap() -> None:
    truth, holes = torch.zeros(2, 1, 2, 2), torch.tensor([[True, False], [False, False]]).expand(2, 1, 2, 2)
    made = truth + torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    sums = hole_sums(made, truth, holes)
    assert sums.tolist() == [2, 6, 18, 2]
    assert known_rms(sums) == pytest.approx((1 / 3) ** 0.5)
    assert hidden_rms(sums) == 3
    given, answer = torch.tensor([[[0, 0], [1, 2]]]), torch.tensor([[[0, 1], [1, 2]]])
    matrix = layout_sums(answer, given, 4)
    assert pixel_accuracy(matrix) == 0.75
    # Class 3 does not occur.
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_the_interval_of_a_mean_is_students() -> None:
    x = np.random.default_rng(0).standard_normal(12) + 5
    found = sums_interval(lambda s: float(s[0] / s[1]), [np.array([v, 1.0]) for v in x], [1] * 12)
    assert found is not None
    half = 2.2009851 * x.std(ddof=1) / 12**0.5
    assert found == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), rel=1e-6)
    assert sums_interval(lambda s: 0.0, [np.zeros(2)] * 2, [1, 1]) is None
