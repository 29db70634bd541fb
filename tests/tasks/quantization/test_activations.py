"""Quantisers of activations: a grid a timestep, a grid a half, what they observe and how they fall back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewstep.errors import EvaluationError
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.tasks.quantization.activations import KNOTS, ActivationQuantizer, between
from fewstep.tasks.quantization.affine import POWER, Grid
from fewstep.tasks.quantization.clock import Clock

TIMES = [0.0, 100.0, 900.0]


def quantizer(bits: int = 8, config: dict[str, Any] | None = None, **settings: Any) -> ActivationQuantizer:
    chosen = {"activation_range": "minmax"} | (config or {})
    return ActivationQuantizer(QuantizationConfig.build(**chosen), bits, Clock(), **settings)


def observed(found: ActivationQuantizer, batches: list[tuple[Tensor | float, Tensor]]) -> ActivationQuantizer:
    found.mode = "observe"
    for time, x in batches:
        found.clock.set(time)
        assert found(x) is x
    found.close()
    found.mode = "on"
    return found


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keyed(**settings: Any) -> ActivationQuantizer:
    """Ranges that grow a hundredfold from the first timestep to the last."""
    found = quantizer(keyed=True, **settings)
    return observed(found, [(time, numbers(i, 8, 4, 3, 3) * 10.0**i) for i, time in enumerate(TIMES)])


def test_off_gives_back_the_tensor_itself() -> None:
    x = numbers(0, 2, 3)
    assert quantizer()(x) is x


@given(st.integers(2, 8), st.integers(0, 100))
def test_on_gives_the_nearest_value_of_the_range_that_was_seen(bits: int, seed: int) -> None:
    batches = [(0.0, numbers(seed + i, 2, 3, 4, 4)) for i in range(3)]
    found, seen = observed(quantizer(bits), batches), torch.cat([x for _, x in batches])
    grid = Grid.spanning(seen.min(), seen.max(), bits)
    assert torch.equal(found(seen), grid.nearest(seen))
    assert (found(seen) - seen).abs().max() <= grid.scale / 2 * 1.001
    assert torch.equal(found(found(seen)), found(seen))


def test_a_timestep_has_a_grid_of_its_own() -> None:
    found = keyed()
    assert found.scale.shape == found.zero.shape == (3, 1)
    assert (found.scale[1:] > 5 * found.scale[:-1]).all()


@pytest.mark.parametrize(("time", "place"), [(0.0, 0), (-5.0, 0), (100.0, 1), (900.0, 2), (1e4, 2)])
def test_a_timestep_that_was_seen_has_its_own_grid_and_one_beyond_them_the_last_ones(time: float, place: int) -> None:
    found, x = keyed(), numbers(9, 8, 4, 3, 3)
    found.clock.set(time)
    assert torch.equal(found(x), Grid(found.scale[place, 0], found.zero[place, 0], 8).nearest(x))


@given(st.floats(0, 900), st.integers(0, 50))
def test_a_grid_in_between_has_ends_in_between(time: float, seed: int) -> None:
    found, x = keyed(), 1e4 * numbers(seed, 8, 4, 3, 3)
    found.clock.set(time)
    seen = found(x)
    low, high = -found.zero[:, 0] * found.scale[:, 0], (255 - found.zero[:, 0]) * found.scale[:, 0]
    k = 0 if time <= TIMES[1] else 1
    share = (time - TIMES[k]) / (TIMES[k + 1] - TIMES[k])
    for reached, ends in ((seen.min(), low), (seen.max(), high)):
        between = float(ends[k] + share * (ends[k + 1] - ends[k]))
        # Zero is a whole code, which moves the ends by half a step.
        assert float(reached) == pytest.approx(between, abs=0.51 * float(found.scale[k + 1, 0]))


@given(st.integers(0, 20), st.sampled_from([(), (1, 3)]))
def test_thinned_grids_cut_nothing_off_and_are_little_wider(seed: int, segments: tuple[int, ...]) -> None:
    found, times = quantizer(keyed=True, axis=-1, segments=segments), torch.arange(200.0)
    x, sizes = numbers(seed, 16, 4), 1.5 + torch.sin(times / 40 + seed)
    observed(found, [(float(t), x * size) for t, size in zip(times, sizes, strict=True)])
    low, high = -found.zero * found.scale, (255 - found.zero) * found.scale
    found.thin()
    assert len(found.times) == KNOTS
    found.clock.set(times)
    index, share = found.clock.place(found.times)
    assert share is not None
    grid = between(Grid(found.scale, found.zero, 8), index, share)
    step = 0.51 * grid.scale
    assert ((-grid.zero * grid.scale) <= low + step).all()
    assert (((255 - grid.zero) * grid.scale) >= high - step).all()
    # Of what changes by at most so much from one kept timestep to the next but one.
    most = 2 * (200 / (KNOTS - 1) + 1) / 40
    assert (255 * grid.scale <= (high - low) + most * (x.amax() - x.amin()) + 2 * step).all()


@given(st.lists(st.sampled_from([*TIMES, 40.0, 600.0]), min_size=1, max_size=6), st.integers(0, 100))
def test_images_of_several_timesteps_are_quantised_as_they_are_alone(times: list[float], seed: int) -> None:
    for found, shape in ((keyed(), (4, 3, 3)), (keyed(segments=(1, 3)), (4, 3, 3)), (keyed(axis=-1), (4,))):
        x = 10 * numbers(seed, len(times), *shape)
        found.clock.set(torch.tensor(times))
        together = found(x)
        for row, time in enumerate(times):
            found.clock.set(time)
            assert torch.equal(found(x[row : row + 1]), together[row : row + 1])


def test_several_timesteps_in_one_batch_are_observed_as_they_are_alone() -> None:
    pieces = [numbers(i, 2, 4) * 10.0**i for i in range(3)]
    alone = observed(quantizer(keyed=True, axis=-1), list(zip(TIMES, pieces, strict=True)))
    times = torch.tensor(TIMES).repeat_interleave(2)
    together = observed(quantizer(keyed=True, axis=-1), [(times, torch.cat(pieces))])
    assert torch.equal(alone.scale, together.scale)
    assert torch.equal(alone.zero, together.zero)


def test_one_timestep_serves_a_batch_of_any_size() -> None:
    found, x = keyed(), numbers(0, 8, 4, 3, 3)
    for time in (100.0, torch.tensor(100.0), torch.tensor([100.0]), torch.full((4,), 100.0)):
        found.clock.set(time)
        assert torch.equal(found(x), Grid(found.scale[1, 0], found.zero[1, 0], 8).nearest(x))


def test_rows_that_belong_to_no_image_are_refused() -> None:
    found = keyed()
    found.clock.set(torch.tensor([0.0, 100.0, 900.0]))
    with pytest.raises(EvaluationError, match="8 rows for 3 images"):
        found(numbers(0, 8, 4, 3, 3))


def test_segments_have_grids_of_their_own() -> None:
    x = torch.cat([numbers(0, 5, 2, 3, 3), 100 * numbers(1, 5, 3, 3, 3)], 1)
    found = observed(quantizer(segments=(2, 3)), [(0.0, x)])
    assert found.scale.shape == (1, 2)
    for piece, channels in enumerate((slice(0, 2), slice(2, 5))):
        grid = Grid(found.scale[0, piece], found.zero[0, piece], 8)
        assert torch.equal(found(x)[:, channels], grid.nearest(x[:, channels]))
    # Together, the small half would be lost in the large one's step.
    whole = observed(quantizer(), [(0.0, x)])
    assert (found(x) - x)[:, :2].norm() < 0.1 * (whole(x) - x)[:, :2].norm()


def test_a_row_has_a_range_of_its_own_by_token() -> None:
    found = quantizer(token=True, axis=-1)
    found.close()
    found.mode = "on"
    x = numbers(0, 3, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    for row in range(3):
        assert torch.equal(found(x)[row], Grid.spanning(x[row].min(), x[row].max(), 8).nearest(x[row]))


def test_a_moving_average_follows_its_momentum() -> None:
    found = quantizer(config={"activation_range": "ema", "momentum": 0.75})
    found = observed(found, [(0.0, torch.tensor([0.0, 1.0])), (0.0, torch.tensor([0.0, 5.0]))])
    assert found.scale.item() == pytest.approx((0.75 * 1 + 0.25 * 5) / 255)


def test_a_percentile_forgets_outliers() -> None:
    x = torch.linspace(0, 1, 1001)
    x[-1] = 1000.0
    found = observed(quantizer(config={"activation_range": "percentile", "percentile": 99.0}), [(0.0, x)])
    assert found.scale.item() * 255 == pytest.approx(0.99, rel=0.01)


def test_the_searched_range_is_no_worse_than_the_full_one() -> None:
    x = numbers(0, 4000) ** 5
    errors = [
        (observed(quantizer(4, config={"activation_range": kind}), [(0.0, x)])(x) - x).abs().pow(POWER).sum().item()
        for kind in ("mse", "minmax")
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["minmax", "ema", "percentile", "mse"])
def test_values_that_are_not_finite_are_refused(bad: float, kind: str) -> None:
    with pytest.raises(EvaluationError, match="not finite"):
        observed(quantizer(config={"activation_range": kind}), [(0.0, torch.tensor([0.0, bad, 1.0]))])


def test_a_quantiser_that_saw_nothing_is_refused() -> None:
    with pytest.raises(EvaluationError, match="saw no data"):
        quantizer().close()


@pytest.mark.parametrize("settings", [{}, {"keyed": True}, {"segments": (1, 3)}])
def test_the_gradient_passes_inside_the_range(settings: dict[str, Any]) -> None:
    found = observed(quantizer(**settings), [(time, numbers(i, 8, 4, 3, 3)) for i, time in enumerate(TIMES)])
    x = numbers(0, 8, 4, 3, 3).mul(0.1).requires_grad_(True)
    found(x).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(1).all()
