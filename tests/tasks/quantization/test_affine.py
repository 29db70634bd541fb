"""Grids: how far the nearest value may be, what is represented exactly, which range is chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.tasks.quantization import affine
from fewstep.tasks.quantization.affine import POWER, Grid, channel_grid

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 10_000)
ENDS = st.floats(-100, 100, width=32)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid_of(a: float, b: float, bits: int) -> Grid:
    return Grid.spanning(torch.tensor(min(a, b)), torch.tensor(max(a, b)), bits)


@given(ENDS, ENDS, BITS)
def test_within_the_range_no_value_is_further_than_half_a_step(a: float, b: float, bits: int) -> None:
    grid = grid_of(a, b, bits)
    x = torch.linspace(min(a, b, 0), max(a, b, 0), 1001)
    assert ((grid.nearest(x) - x).abs() <= grid.scale / 2 * 1.001 + 1e-6 * max(abs(a), abs(b))).all()


@given(ENDS, ENDS, BITS)
def test_zero_is_exact_and_there_are_at_most_two_to_the_bits_values(a: float, b: float, bits: int) -> None:
    grid = grid_of(a, b, bits)
    assert grid.nearest(torch.zeros(3)).eq(0).all()
    assert len(grid.nearest(torch.linspace(-200, 200, 5001)).unique()) <= 2**bits


@given(SEEDS, BITS)
def test_nearest_is_the_value_of_the_code_and_stays_where_it_is(seed: int, bits: int) -> None:
    x = 3 * numbers(seed, 500)
    grid = Grid.spanning(x.min() / 2, x.max() / 2, bits)
    found = grid.nearest(x)
    assert torch.equal(found, grid.values(grid.codes(x)))
    assert torch.equal(grid.nearest(found), found)


@given(SEEDS, BITS)
def test_nearest_is_what_torch_quantises(seed: int, bits: int) -> None:
    x = 3 * numbers(seed, 500)
    grid = Grid.spanning(x.min() / 2, x.max() / 2, bits)
    expected = torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero), 0, grid.largest)
    assert torch.equal(grid.nearest(x), expected)


def test_the_gradient_passes_inside_the_range_alone() -> None:
    grid = Grid.spanning(torch.tensor(-1.0), torch.tensor(1.0), 4)
    x = torch.tensor([-3.0, -0.9, 0.0, 0.2, 0.9, 3.0], requires_grad=True)
    value = grid.nearest(x)
    value.backward(torch.arange(1.0, 7.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]
    assert torch.equal(value.detach(), grid.nearest(x.detach()))


@given(SEEDS, BITS)
def test_the_searched_range_is_never_worse_than_the_full_one(seed: int, bits: int) -> None:
    weight = numbers(seed, 4, 3, 3, 3) ** 3

    def error(grid: Grid) -> Tensor:
        return (grid.values(grid.codes(weight)) - weight).abs().pow(POWER).sum((1, 2, 3))

    assert (error(channel_grid(weight, bits, True)) <= error(channel_grid(weight, bits, False)) * (1 + 1e-5)).all()


def test_outliers_shrink_the_searched_range() -> None:
    weight = torch.cat([numbers(0, 1, 500), torch.full((1, 1), 20.0)], 1)
    assert channel_grid(weight, 3, True).scale.item() < channel_grid(weight, 3, False).scale.item()


@given(SEEDS, BITS, st.booleans())
def test_each_output_channel_has_a_grid_of_its_own(seed: int, bits: int, search: bool) -> None:
    weight = numbers(seed, 3, 2, 3, 3)
    together = channel_grid(weight * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None], bits, search)
    assert together.scale.shape == together.zero.shape == (3, 1, 1, 1)
    for k in range(3):
        alone = channel_grid(weight[k : k + 1] * 10.0**k, bits, search)
        assert torch.allclose(alone.scale, together.scale[k])
        assert torch.equal(alone.zero, together.zero[k : k + 1])


@given(SEEDS, st.booleans())
def test_eight_bits_are_symmetric_around_the_middle_code(seed: int, search: bool) -> None:
    weight = numbers(seed, 3, 20) + 1
    grid = channel_grid(weight, 8, search)
    assert grid.zero.eq(128).all()
    assert torch.equal(grid.nearest(-weight).clamp(-1, 1), -grid.nearest(weight).clamp(-1, 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_a_constant_channel_is_kept(bits: int, value: float) -> None:
    weight = torch.full((2, 9), value)
    grid = channel_grid(weight, bits, True)
    assert torch.isfinite(grid.scale).all()
    assert torch.allclose(grid.nearest(weight), weight, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_how_many_weights_are_searched_at_once_changes_no_grid(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numbers(3, 7, 5, 3, 3) * torch.logspace(-3, 1, 7).view(-1, 1, 1, 1)
    whole = channel_grid(weight, bits, True)
    for at_once in (1, 2 * 45, 3 * 45 + 1):
        monkeypatch.setattr(affine, "AT_ONCE", at_once)
        parts = channel_grid(weight, bits, True)
        assert torch.equal(parts.scale, whole.scale)
        assert torch.equal(parts.zero, whole.zero)
    # Each channel's range is its own.
    alone = [channel_grid(row[None], bits, True).scale for row in weight]
    assert torch.equal(torch.cat(alone), whole.scale)
