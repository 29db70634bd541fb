"""Temporal features as a table: what it knows it answers, what it does not know is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.search_spaces.quantization import named
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.clock import Clock
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.table import TimeTable

Make = Callable[..., Any]
KINDS = ["unet", "text", "dit"]


def computed(network: QuantizedNetwork, given: dict[str, Tensor]) -> set[str]:
    """Layers of the block that compute something in a pass."""
    found = set()

    def watched(name: str, compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            found.add(name)
            return compute(x)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in network.time_layers:
            layer = network.layers[name]
            patch.setattr(layer, "_compute", watched(name, layer._compute))
        caller(network.module)(**given)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_on_tabulated_times_features_are_those_of_full_precision(kind: str, calibrated: Make, inputs: Make) -> None:
    network, twin = calibrated("w2a8-tfmq-full", kind, tib="table")
    given = inputs(kind)
    network.switch(weights=False, activations="off")
    network.switch(weights=True, activations="on", names=network.time_layers)
    with torch.no_grad():
        assert torch.allclose(caller(network.module)(**given), caller(twin)(**given), atol=1e-5)
    assert not computed(network, given)
    network.detach()
    with torch.no_grad():
        assert not torch.allclose(caller(network.module)(**given), caller(twin)(**given), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_times_are_computed_as_without_a_table(kind: str, calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full", kind, tib="table")
    given = inputs(kind) | {"time": torch.full((16,), 333.0)}
    assert computed(network, given) == set(network.time_layers)
    found = caller(network.module)(**given)
    network.detach()
    assert torch.equal(found, caller(network.module)(**given))


def test_unknown_labels_are_computed(calibrated: Make, inputs: Make, wrapped: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-full", tib="table", iterations=0, tiar_iterations=0)
    data = inputs()
    Calibration(network, data | {"labels": data["labels"].clamp(max=1)}).run()
    given = {name: value[:2] for name, value in data.items()}
    assert not computed(network, given | {"labels": torch.tensor([0, 1])})
    assert computed(network, given | {"labels": torch.tensor([3, 4])}) == set(network.time_layers)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_an_image_does_not_depend_on_what_is_known_of_the_others(kind: str, calibrated: Make, inputs: Make) -> None:
    network, _ = calibrated("w3a32-tfmq-full", kind, tib="table")
    given = {name: value[[0, 5, 10, 15]] for name, value in inputs(kind).items()}
    given["time"] = torch.tensor([0.0, 333.0, 500.0, 77.0])
    with torch.no_grad():
        together = caller(network.module)(**given)
        for row in range(4):
            alone = caller(network.module)(**{name: value[row : row + 1] for name, value in given.items()})
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_ranges_of_the_block_are_found_all_the_same(calibrated: Make) -> None:
    network, _ = calibrated("w4a8-tfmq-full", tib="table")
    assert all(len(network.layers[name].activation.times) == 4 for name in network.time_layers)


def test_calibrating_again_does_not_read_the_old_table(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-full", tib="table", iterations=0, tiar_iterations=0)
    Calibration(network, inputs()).run()
    first = network.table
    moved = inputs() | {"time": inputs()["time"] / 2}
    Calibration(network, moved).run()
    assert network.table is not first
    assert network.table.times.unique().tolist() == moved["time"].unique().tolist()


def test_rows_by_time_and_label() -> None:
    table, clock = TimeTable(torch.tensor([1, 1, 7]), torch.tensor([0, 1, 0]), {"a": torch.eye(3)}), Clock()

    def answer(time: Any, labels: list[int] | None, count: int) -> Any:
        clock.set(torch.tensor(time), None if labels is None else torch.tensor(labels))
        found = table.lookup("a", clock, count)
        return (
            None
            if found is None
            else (found[0].argmax(1).tolist(), found[1] if found[1] is None else found[1].tolist())
        )

    assert answer(1.0, [0, 1], 2) == ([0, 1], None)
    assert answer([1.0, 7.0], [1, 0], 2) == ([1, 2], None)
    assert answer([1.0], [1, 0], 2) == ([1, 0], None)
    assert answer([1.0, 7.0], [1, 0], 4) == ([1, 1, 2, 2], None)
    assert answer(7.0, [0, 1], 2)[1] == [True, False]
    assert answer(7.0, [1, 1], 2) is None
    assert answer(2.0, [0, 1], 2) is None
    assert answer(1.0, None, 2) is None
    assert answer([1.0, 7.0], [1, 0], 3) is None


def test_a_layer_that_gives_two_features_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.body = nn.Linear(1, 3), nn.Linear(3, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Any:
            first = self.body(sample + self.time(timestep[:, None]))
            return type("Output", (), {"sample": first + self.time(-timestep[:, None])})

    data = {"x": torch.randn(4, 3), "time": torch.arange(4.0)}
    config = named("w4a8-tfmq-paper", tib="table", tiar_iterations=0, iterations=0)
    network = QuantizedNetwork.wrap(Shared().requires_grad_(False), config, data)
    with pytest.raises(ModelError, match="two temporal features"):
        Calibration(network, data).run()
