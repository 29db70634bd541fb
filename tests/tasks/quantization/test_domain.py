"""The temporal block is fitted on all that it can be asked: nothing is unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_families import EDM
from fewstep.tasks.models.noise_schedule import ContinuousVP
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.domain import block_domain, training_times
from fewstep.tasks.quantization.temporal import temporal_errors

Make = Callable[..., Any]
FASHION = find_model("fashion-ddpm")


def pairs(found: dict[str, Tensor]) -> set[tuple[float, float]]:
    return set(zip(found["time"].tolist(), found["labels"].tolist(), strict=True))


def test_every_timestep_goes_with_every_label_and_what_the_data_hold_is_among_them() -> None:
    own = {"time": torch.tensor([870.25, 3.5]), "labels": torch.tensor([2, 7])}
    found = block_domain(FASHION, own, 0, rows=10**6)
    labels = {float(label) for label in range((FASHION.null_label or 0) + 1)} | {float(i) for i in range(10)}
    assert pairs(found) == {(float(t), label) for t in range(1000) for label in labels} | {(870.25, 2.0), (3.5, 7.0)}
    assert found["labels"].dtype == torch.int64
    assert torch.equal(block_domain(FASHION, {"time": own["time"]}, 0)["time"].unique()[-1], torch.tensor(999.0))


@pytest.mark.parametrize("rows", [64, 1500, 4000])
def test_of_too_many_pairs_every_time_and_label_is_taken_as_often(rows: int) -> None:
    own = {"time": torch.tensor([500.0]), "labels": torch.tensor([0])}
    found = block_domain(FASHION, own, 3, rows)
    assert 0.9 * rows <= len(found["time"]) <= rows + 1
    for values, count in ((found["time"], min(rows, 1000)), (found["labels"], 10)):
        times = values.unique(return_counts=True)[1]
        assert len(times) >= count
        assert times.max() <= max(3, 1.35 * float(times.float().mean()) + 1)
    assert pairs(found) == pairs(block_domain(FASHION, own, 3, rows))


def test_times_of_models_without_discrete_ones_span_what_the_network_is_told() -> None:
    for noise in (EDM(0.002, 80.0, 0.5), ContinuousVP()):
        found = training_times(noise, 50)
        ends = sorted((noise.time(noise.lambda_start), noise.time(noise.lambda_end)))
        assert len(found) == 50
        assert found[[0, -1]].tolist() == pytest.approx(ends, rel=1e-5)
        assert (found.diff() > 0).all()


# Features of an untrained DiT differ more in size, and the smaller ones are further off relative to it.
@pytest.mark.parametrize(("kind", "most"), [("unet", 1.5), ("dit", 3)])
def test_the_block_is_as_right_at_times_and_labels_that_no_image_showed_it(
    kind: str, most: float, wrapped: Make, inputs: Make
) -> None:
    given, errors = inputs(kind), {}
    shown = {name: value[(given["time"] > 400) & (given["labels"] < 2)] for name, value in given.items()}
    everything = torch.cartesian_prod(torch.arange(0, 1000.0, 10), torch.arange(5.0))
    domain = {"time": everything[:, 0], "labels": everything[:, 1].long()}
    for name, asked in (("data", None), ("domain", domain)):
        network, twin = wrapped(
            "w4a8-tfmq-paper",
            kind,
            reconstruction="none",
            solver="descent",
            sweeps=4,
            restarts=3,
            activation_range="minmax",
        )
        Calibration(network, shown, domain=asked).run()
        for where, times, labels in (("seen", (500.0, 999.0), (0, 1)), ("unseen", (15.0, 205.0, 333.3), (2, 3, 4))):
            example = {
                "x": torch.zeros(len(labels), 3, 8, 8),
                "time": torch.zeros(len(labels)),
                "labels": torch.tensor(labels),
            }
            rows = temporal_errors(twin, network, times, example)
            errors[name, where] = sum(row.relative_error for row in rows) / len(rows)
    assert errors["domain", "unseen"] < most * errors["domain", "seen"]
    assert errors["domain", "unseen"] < 0.6 * errors["data", "unseen"]
