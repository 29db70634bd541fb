"""Bits by layer: at the same mean, more where rounding changes the output more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.quantization import MOST_BITS, QuantizationConfig, named
from fewstep.tasks.quantization.allocation import allot_bits, changes_by_layer
from fewstep.tasks.quantization.bits import BELOW, FALL, least_change
from fewstep.tasks.quantization.calibration import Calibration

Make = Callable[..., Any]
CHANGES = st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 9)), min_size=1, max_size=4)


@given(CHANGES, st.integers(3, 6))
def test_no_other_bits_of_as_many_have_a_smaller_sum(drawn: list[tuple[float, int]], mean: int) -> None:
    change = {f"l{i}": c for i, (c, _) in enumerate(drawn)}
    size = {f"l{i}": n for i, (_, n) in enumerate(drawn)}
    found = least_change(change, size, mean)
    most = mean * sum(size.values())

    def cost(bits: dict[str, int]) -> float:
        return sum(change[name] * FALL ** (count - mean) for name, count in bits.items())

    assert sum(size[name] * count for name, count in found.items()) <= most
    assert all(mean - BELOW <= count <= MOST_BITS for count in found.values())
    assert cost(found) <= cost(dict.fromkeys(change, mean)) * (1 + 1e-9)
    if len(set(size.values())) == 1:
        # Where layers are of one size nothing is left over, and greedy is the least of all.
        every = (
            dict(zip(change, bits, strict=True))
            for bits in product(range(mean - BELOW, MOST_BITS + 1), repeat=len(change))
        )
        least = min(cost(bits) for bits in every if sum(size[n] * b for n, b in bits.items()) <= most)
        assert cost(found) == pytest.approx(least, rel=1e-9)


def test_a_layer_that_changes_nothing_gives_its_bits_to_others(wrapped: Make, inputs: Make) -> None:
    network, _ = wrapped("w4a32-tfmq-paper", allocation="sensitivity", solver="descent", sweeps=1, restarts=0)
    data = inputs(count=2)
    body = [name for name, plan in network.plans.items() if plan.role == "body"]
    others = {n: p.bits for n, p in network.plans.items() if p.role in ("edge", "time")}
    idle = max(body, key=lambda name: network.layers[name].original.numel())
    # Whole numbers round to themselves, and change nothing.
    network.layers[idle].original.zero_()
    allot_bits(network, changes_by_layer(network, data, 16))
    bits = {name: plan.bits for name, plan in network.plans.items()}
    assert bits[idle] == 4 - BELOW
    assert {name: bits[name] for name in others} == others
    assert all(network.layers[name].bits == count for name, count in bits.items())
    sizes = {n: network.layers[n].original.numel() for n in bits if n not in others}
    assert sum(sizes[n] * bits[n] for n in sizes) <= 4 * sum(sizes.values())
    assert max(bits[n] for n in sizes) > 4
    Calibration(network, data).run()
    for name, layer in network.layers.items():
        assert all(int(part.codes.max()) < 2 ** bits[name] for part in layer.parts)
        assert torch.isfinite(layer.weight).all()


def test_even_bits_are_named_as_ever_and_at_most_bits_there_are_none_to_allot() -> None:
    even, mixed = named("w4a8-tfmq-full"), named("w4a8-tfmq-full", allocation="sensitivity")
    assert "allocation" not in even.model_dump_json()
    assert even.hash != mixed.hash
    assert QuantizationConfig.from_json(mixed.model_dump_json()) == mixed
    for name in ("w32a8-naive-paper", "w8a8-mixed-full"):
        with pytest.raises(ConfigurationError, match="leave allocation away"):
            named(name, allocation="sensitivity")
