"""What a calibration is said to take at most is what it takes at most, and what grows with the images lies on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.tasks.quantization import memory
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.memory import LivePeak, batch_for, forecast
from fewstep.tasks.quantization.shelf import Shelf

Make = Callable[..., Any]


def test_the_live_peak_counts_what_lives_at_one_time_and_nothing_twice() -> None:
    given = torch.zeros(1000)
    with LivePeak() as live:
        a = given + 1
        view = a.view(10, 100).T
        b = view * 2
        del a, view
        c = torch.zeros(100)
        del b
        given.add_(1)
    assert live.peak == 8000
    assert c.numel() == 100


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("w4a8-tfmq-full", {"solver": "descent", "sweeps": 1, "restarts": 0}),
        ("w4a8-qdiffusion-paper", {"iterations": 2}),
    ],
)
def test_the_stated_peak_is_held_and_not_far_above(
    name: str, changes: dict[str, Any], wrapped: Make, inputs: Make
) -> None:
    data, batch = inputs(count=64), 16
    network, _ = wrapped(name, **changes)
    said = forecast(network, {key: value[:3] for key, value in data.items()}, len(data["x"]), batch, 4 * 5)
    before = network.bytes + said.data
    with LivePeak() as live:
        Calibration(network, data, batch=batch).run()
    taken = live.peak + before
    assert taken <= said.peak
    assert said.peak < 3 * taken
    assert said.disk > 0


def test_the_stated_peak_grows_with_the_images_by_their_inputs_alone(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w4a8-tfmq-full", solver="descent")
    example = {key: value[:3] for key, value in inputs().items()}
    few, many = (forecast(network, example, rows, 16) for rows in (100_000, 200_000))
    assert many.data == 2 * few.data
    assert many.peak - few.peak <= many.data - few.data
    assert many.disk > few.disk


def test_the_batch_is_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PASS", 1000)
    assert [batch_for(size) for size in (0, 1, 100, 999, 5000)] == [64, 64, 10, 1, 1]


def test_a_shelf_gives_back_what_was_put_there_and_leaves_nothing(tmp_path: Path) -> None:
    pieces = [
        ((torch.randn(n, 3, 2), 7), {"time": torch.arange(n), "none": None, "one": torch.ones(1)}) for n in (4, 4, 2)
    ]
    with Shelf(tmp_path / "deep") as shelf:
        (x, seven), named = shelf.joined("unit", iter(pieces), 4)
        assert torch.equal(x, torch.cat([piece[0][0] for piece in pieces]))
        assert torch.equal(named["time"], torch.cat([piece[1]["time"] for piece in pieces]))
        assert (seven, named["none"], named["one"].item()) == (7, None, 1.0)
        shelf.put("rows", x[:6])
        shelf.put("rows", x[6:])
        following = shelf.read("rows")
        assert torch.equal(torch.cat([following(3), following(7)]), x)
        shelf.drop("unit")
        assert len(list((tmp_path / "deep").rglob("*"))) == 2
    assert not list((tmp_path / "deep").iterdir())
