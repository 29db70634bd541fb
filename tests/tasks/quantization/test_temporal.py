"""Temporal features' errors: none for the same network, and in the order that the methods promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.temporal import TemporalError, block_errors, projections, temporal_errors
from fewstep.tasks.quantization.trajectories import moments_of_block

Make = Callable[..., Any]
KINDS = ["unet", "text", "dit"]
TIMES = [0.0, 250.0, 500.0, 999.0]


def errors(network: QuantizedNetwork, twin: nn.Module, given: dict[str, Tensor]) -> list[TemporalError]:
    return temporal_errors(twin, network, TIMES, {name: value[:5] for name, value in given.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_has_none(kind: str, wrapped: Make, inputs: Make) -> None:
    network, twin = wrapped("w4a8-naive-paper", kind)
    found = errors(network, twin, inputs(kind))
    assert [row.time for row in found] == TIMES
    for row in found:
        assert row.relative_error == 0
        assert row.cosine == pytest.approx(1)
    network.switch(weights=True)
    assert all(row.relative_error > 0.01 and row.cosine < 1 for row in errors(network, twin, inputs(kind)))


def test_the_error_is_relative_to_the_features_in_full_precision(wrapped: Make, inputs: Make) -> None:
    """All features 1.5 times as large: half as wrong as they are large, and in the same direction."""
    network, twin = wrapped("w32a32-naive-paper")
    names = projections(twin, {name: value[:3] for name, value in inputs().items()})
    for name in names:
        layer = network.layers[name]
        layer.register_forward_hook(lambda _, __, output: 1.5 * output)
    for row in errors(network, twin, inputs()):
        assert row.relative_error == pytest.approx(0.5, rel=1e-5)
        assert row.cosine == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_what_reads_the_time_embedding(kind: str, make: Make, inputs: Make) -> None:
    network = make(kind)
    found = projections(network, {name: value[:3] for name, value in inputs(kind).items()})
    if kind == "dit":
        expected = [name for name, _ in network.named_modules() if name.endswith("norm1.linear")]
        assert set(expected) <= set(found)
    else:
        assert sorted(found) == sorted(n for n, _ in network.named_modules() if n.endswith("time_emb_proj"))


def test_methods_come_in_their_order(wrapped: Make, inputs: Make) -> None:
    """8 bits before 4; TIAR before nearest; a table that knows every timestep is exact."""
    given, means = inputs(count=5), {}
    rest = {"reconstruction": "none", "solver": "descent"}
    for name, changes in {
        "w8a32-naive-paper": {},
        "w4a32-naive-paper": {},
        "w4a32-tfmq-paper": rest,
        "w4a8-tfmq-paper": rest | {"tib": "table"},
    }.items():
        network, twin = wrapped(name, **changes)
        # Every label at every timestep.
        Calibration(network, given).run()
        means[name] = sum(row.relative_error for row in errors(network, twin, given)) / len(TIMES)
    assert means["w4a8-tfmq-paper"] < 1e-5
    assert means["w8a32-naive-paper"] < means["w4a32-tfmq-paper"] < means["w4a32-naive-paper"] / 2


def test_a_network_without_temporal_features_is_refused(make: Make, inputs: Make) -> None:
    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 3, 1)

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            return type("Output", (), {"sample": self.only(sample)})

    with pytest.raises(ModelError, match="time alone"):
        projections(Timeless(), {"x": torch.randn(2, 3, 8, 8), "time": torch.zeros(2)})


@pytest.mark.parametrize(
    ("kind", "changes"), [("dit", {}), ("unet", {}), ("unet", {"tib": "table", "tiar_iterations": 2})]
)
def test_the_block_alone_gives_what_whole_passes_give(
    kind: str, changes: dict[str, Any], wrapped: Make, inputs: Make
) -> None:
    """And leaves the calibrated network as it was, its table too."""
    network, twin = wrapped("w4a8-naive-paper", kind, **changes)
    data = inputs(kind)
    Calibration(network, data).run()
    example = {name: value[:5] for name, value in data.items()}
    before = caller(network.module)(**example)
    domain = moments_of_block(data)
    found = block_errors(network, domain)
    assert [row.time for row in found] == sorted(set(domain["time"].tolist()))
    row = found[1]
    rows = domain["time"] == row.time
    count = int(rows.sum())
    given = {"x": data["x"][:1].expand(count, -1, -1, -1), "time": domain["time"][rows]}
    given |= {"labels": domain["labels"][rows]} if "labels" in domain else {}
    given |= {"condition": data["condition"][:1].expand(count, -1, -1)} if "condition" in data else {}
    (whole,) = temporal_errors(twin, network, [row.time], given)
    assert row.relative_error == pytest.approx(whole.relative_error, rel=1e-3, abs=1e-6)
    assert row.cosine == pytest.approx(whole.cosine, abs=1e-5)
    assert all(r.least <= r.relative_error * (1 + 1e-9) <= r.most * (1 + 2e-9) for r in found)
    assert torch.equal(caller(network.module)(**example), before)
    assert len(block_errors(network, domain, times=2)) == 2
