"""AdaRound: where it starts, where it may end, and that it is worth its while."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.errors import EvaluationError
from fewstep.tasks.quantization.layers import QuantizedLayer
from fewstep.tasks.quantization.rounding import RoundingPlan, learn_rounding

PLAN = RoundingPlan(iterations=300, rate=1e-2, weight=0.01, warmup=0.2)


def layer_of(seed: int, bits: int, segments: tuple[int, ...] = (), search: bool = False) -> QuantizedLayer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        original = nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)
    layer = QuantizedLayer(original, bits, None, segments)
    layer.round_to_nearest(search)
    layer.on = True
    return layer


def output_error(layer: QuantizedLayer, seed: int = 0) -> Callable[[int], Tensor]:
    """Squared error on images whose channels go together, as activations do."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 2, 8, 8, generator=rng).repeat(1, 3, 1, 1) + 0.3 * torch.randn(16, 6, 8, 8, generator=rng)
    layer.on = False
    target = layer(x)
    layer.on = True
    return lambda _: (layer(x) - target).square().sum(1).mean()


def codes(layer: QuantizedLayer) -> list[Tensor]:
    return [part.codes.clone() for part in layer.parts]


def inside(layer: QuantizedLayer) -> Tensor:
    """Where the weight lies within its grid's range."""
    assert layer.original is not None
    pieces = layer.original.split(layer.segments, 1)
    found = []
    for part, piece in zip(layer.parts, pieces, strict=True):
        steps = piece / part.grid.scale + part.grid.zero
        found.append((steps >= 0) & (steps <= part.grid.largest))
    return torch.cat(found, 1)


@given(st.integers(0, 1000), st.integers(2, 8), st.sampled_from([(), (2, 4), (1, 2, 3)]), st.booleans())
def test_it_starts_at_the_exact_weight(seed: int, bits: int, segments: tuple[int, ...], search: bool) -> None:
    layer = layer_of(seed, bits, segments, search)
    layer.start_rounding()
    assert layer.original is not None
    start, within = layer.weight.detach(), inside(layer)
    assert torch.allclose(start[within], layer.original[within], atol=1e-5)
    assert within.float().mean() > 0.3
    layer.leave_rounding()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 8), st.sampled_from([(), (2, 4)]))
def test_without_iterations_it_ends_at_the_nearest_codes(seed: int, bits: int, segments: tuple[int, ...]) -> None:
    layer = layer_of(seed, bits, segments)
    nearest = codes(layer)
    learn_rounding([layer], output_error(layer), RoundingPlan(0, 1e-2, 0.01, 0.2))
    for found, expected in zip(codes(layer), nearest, strict=True):
        assert (found.int() - expected.int()).abs().max() <= 1
        assert (found != expected).float().mean() < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_stay_within_a_step_of_the_weight_and_within_the_grid(bits: int) -> None:
    layer = layer_of(3, bits, (2, 4))
    nearest = codes(layer)
    learn_rounding([layer], output_error(layer), RoundingPlan(200, 0.1, 0.01, 0.2))
    found = codes(layer)
    assert any(not torch.equal(a, b) for a, b in zip(found, nearest, strict=True))
    for after, before in zip(found, nearest, strict=True):
        assert after.dtype == torch.uint8
        assert (after.int() - before.int()).abs().max() <= 1
        assert int(after.max()) < 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("segments", [(), (2, 4)])
def test_it_beats_the_nearest_codes_on_its_data_and_on_other(bits: int, segments: tuple[int, ...]) -> None:
    layer = layer_of(5, bits, segments)
    loss, other = output_error(layer), output_error(layer, seed=9)
    before = float(loss(0)), float(other(0))
    learn_rounding([layer], loss, PLAN)
    assert not layer.soft
    assert float(loss(0)) < 0.8 * before[0]
    assert float(other(0)) < 0.8 * before[1]


def test_it_is_deterministic() -> None:
    found = []
    for _ in range(2):
        layer = layer_of(1, 3)
        losses = learn_rounding([layer], output_error(layer), PLAN)
        found.append((codes(layer)[0], losses))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_rounding_term_is_off_while_it_warms_up_and_decides_every_weight_afterwards() -> None:
    def moved(warmup: float, weight: float) -> tuple[Tensor, Tensor]:
        layer = layer_of(1, 3)
        kept: list[Tensor] = []

        def loss(_: int) -> Tensor:
            # What the variables are before the last step; no data speak for either side.
            kept[:] = [variable.detach().clone() for variable in layer.soft]
            return 0 * layer.weight.sum()

        start = layer.start_rounding()[0].detach().clone()
        learn_rounding([layer], loss, RoundingPlan(400, 0.05, weight, warmup))
        return start, kept[0]

    start, end = moved(warmup=0.9999, weight=0.01)
    assert torch.allclose(start, end)
    start, end = moved(warmup=0.2, weight=0.01)
    sides, opening = QuantizedLayer.opening(start) > 0.5, QuantizedLayer.opening(end)
    assert ((opening < 0.01) | (opening > 0.99)).float().mean() > 0.9
    assert ((opening > 0.5) == sides).float().mean() > 0.99


def test_a_loss_that_explodes_is_an_error_and_leaves_the_codes() -> None:
    layer = layer_of(1, 3)
    before, loss = codes(layer), output_error(layer)
    with pytest.raises(EvaluationError, match="iteration 2"):
        learn_rounding([layer], lambda i: loss(i) * (float("nan") if i == 2 else 1), PLAN)
    assert torch.equal(codes(layer)[0], before[0])
    assert not layer.soft
