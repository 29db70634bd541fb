"""Rounding as integer least squares: the objective is the layer's error, and nothing that descends raises it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fewstep.tasks.quantization.affine import channel_grid
from fewstep.tasks.quantization.descent import RIDGE, STRETCH, Fit, LayerProblem, Moments, MomentSums, chosen_rows
from fewstep.tasks.quantization.fitting import fit_moments
from fewstep.tasks.quantization.layers import QuantizedLayer

# A busy machine is no failure.
patient = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
ROWS, INPUTS, OUTPUTS = 60, 7, 5


class _Case:
    """Rows, targets and a start at the nearest codes, in one part or two."""

    def __init__(self, seed: int, bits: int = 3, bias: bool = True, weighted: bool = False, parts: int = 1) -> None:
        rng = torch.Generator().manual_seed(seed)
        mix = torch.randn(INPUTS, INPUTS, generator=rng)
        self.x = torch.randn(ROWS, INPUTS, generator=rng) @ mix + 1
        self.exact = torch.randn(OUTPUTS, INPUTS, generator=rng)
        self.y = self.x @ self.exact.T + 0.1 * torch.randn(ROWS, OUTPUTS, generator=rng) + 2
        self.rows = torch.rand(ROWS, generator=rng) + 0.01 if weighted else None
        self.bias = bias
        self.sizes = (INPUTS,) if parts == 1 else (3, INPUTS - 3)
        pieces = torch.split(self.exact, list(self.sizes), 1)
        grids = [channel_grid(piece, bits, search=False) for piece in pieces]
        self.start = Fit(
            torch.cat([grid.codes(piece) for grid, piece in zip(grids, pieces, strict=True)], 1).double(),
            torch.cat([grid.scale for grid in grids], 1).double(),
            torch.cat([grid.zero for grid in grids], 1).double(),
            self.sizes,
        )
        self.problem = LayerProblem(Moments.of(self.x, self.y, self.rows, bias), self.exact, 2**bits - 1)

    def objective(self, weight: Tensor) -> Tensor:
        """Written out: the weighted mean squared error with the best bias, found by least squares, and the ridge."""
        x, y = self.x.double(), self.y.double()
        share = torch.ones(ROWS).double() if self.rows is None else self.rows.double()
        share = share / share.sum()
        missed = y - x @ weight.T
        if self.bias:
            root = share.sqrt()[:, None]
            missed = missed - torch.linalg.lstsq(root, root * missed).solution
        return (share[:, None] * missed.square()).sum(0) + self.problem.ridge * (weight - self.exact).square().sum(1)


@patient
@given(seeds, st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_the_error_is_the_weighted_squared_error_with_the_best_bias(
    seed: int, bias: bool, weighted: bool, parts: int
) -> None:
    case = _Case(seed, bias=bias, weighted=weighted, parts=parts)
    for weight in (case.start.weight, case.exact.double(), torch.zeros_like(case.exact).double()):
        # The inputs are single precision.
        torch.testing.assert_close(case.problem.error(weight), case.objective(weight), rtol=1e-4, atol=1e-3)
    share = torch.ones(ROWS) if case.rows is None else case.rows
    best = ((case.y - case.x @ case.start.weight.float().T) * share[:, None]).sum(0) / share.sum()
    found = case.problem.bias(case.start.weight).float()
    torch.testing.assert_close(found, best if bias else torch.zeros_like(best), rtol=1e-4, atol=1e-4)


def test_the_ridge_is_a_share_of_the_mean_squared_input() -> None:
    case = _Case(3)
    assert case.problem.ridge == pytest.approx(RIDGE * float(case.x.var(0, correction=0).mean()), rel=1e-4)


@patient
@given(seeds, st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_ridge_holds_weights_to_what_they_were(seed: int, ridge: float) -> None:
    case = _Case(seed, bits=4)
    problem = LayerProblem(case.problem.moments, case.exact, 15, ridge)
    # No step raises error + ridge |W - W0|^2: what the distance gains, the error has paid for.
    paid = problem.error(case.start.weight) / problem.ridge
    moved = (problem.solve(case.start, 6).weight - case.exact).square().sum(1)
    assert bool((moved <= paid * (1 + 1e-9)).all())


def test_a_heavier_ridge_holds_weights_nearer() -> None:
    """Descent ends in local minima, so that this is said of the mean of many."""
    distances = []
    for ridge in (1e-3, 1e-1, 1e4):
        cases = [_Case(seed, bits=4) for seed in range(20)]
        problems = [LayerProblem(case.problem.moments, case.exact, 15, ridge) for case in cases]
        moved = [p.solve(c.start, 6).weight - c.exact for p, c in zip(problems, cases, strict=True)]
        distances.append(float(torch.stack(moved).norm(dim=(1, 2)).mean()))
    assert distances == sorted(distances, reverse=True)


@patient
@given(seeds, st.integers(1, 12))
def test_moments_of_pieces_are_those_of_the_whole(seed: int, size: int) -> None:
    for bias in (True, False):
        case, sums = _Case(seed), MomentSums(bias)
        for first in range(0, ROWS, size):
            sums.add(case.x[first : first + size], case.y[first : first + size])
        whole, found = Moments.of(case.x, case.y, None, bias), sums.moments()
        for name in ("gram", "cross", "power", "mean_x", "mean_y"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-4, atol=1e-4)


@patient
@given(seeds, st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]))
def test_no_sweep_and_no_scale_raises_the_objective(seed: int, bits: int, parts: int) -> None:
    case = _Case(seed, bits, parts=parts)
    fit, problem = case.start.copy(), case.problem
    first, error = fit.scale.clone(), problem.error(fit.weight)
    for _ in range(4):
        for move in (lambda: problem._refit(fit, first), lambda: problem._sweep(fit)):
            move()
            found = problem.error(fit.weight)
            assert bool((found <= error + 1e-9 * (1 + error.abs())).all())
            error = found
        assert bool(((fit.codes >= 0) & (fit.codes <= 2**bits - 1) & (fit.codes == fit.codes.round())).all())
        ratio = fit.scale / first
        assert bool(((ratio <= STRETCH + 1e-9) & (ratio >= 1 / STRETCH - 1e-9)).all())


@patient
@given(seeds, st.integers(1, 5), st.integers(0, 6), st.sampled_from([1, 2]))
def test_every_output_ends_no_worse_than_nearest_and_restarts_never_harm(
    seed: int, sweeps: int, restarts: int, parts: int
) -> None:
    case = _Case(seed, parts=parts)
    before = case.start.copy()
    nearest = case.problem.error(case.start.weight)
    plain = case.problem.error(case.problem.solve(case.start, sweeps).weight)
    again = case.problem.error(case.problem.solve(case.start, sweeps, restarts).weight)
    assert bool((plain <= nearest + 1e-9 * (1 + nearest)).all())
    assert bool((again <= plain + 1e-9 * (1 + plain)).all())
    # What it starts from is left as it was.
    assert torch.equal(before.codes, case.start.codes)
    assert torch.equal(before.scale, case.start.scale)


def test_a_finished_descent_has_no_better_neighbour() -> None:
    """No single code can be moved, the scale held, to lower the error of its output."""
    case = _Case(11, bits=2)
    found = case.problem.solve(case.start, 100)
    case.problem._sweep(found)
    error = case.problem.error(found.weight)
    for i, code in product(range(INPUTS), range(4)):
        moved = found.copy()
        moved.codes[:, i] = code
        assert bool((case.problem.error(moved.weight) >= error - 1e-9).all())


def test_with_restarts_the_best_of_all_codes_is_found() -> None:
    """2 bits, 3 inputs: 64 codes an output, tried one and all with their best scale."""
    rng = torch.Generator().manual_seed(5)
    x, exact = torch.randn(40, 3, generator=rng), torch.randn(8, 3, generator=rng)
    problem = LayerProblem(Moments.of(x, x @ exact.T, None, True), exact, 3)
    grid = channel_grid(exact, 2, search=False)
    start = Fit(grid.codes(exact).double(), grid.scale.double(), grid.zero.double(), (3,))
    best = torch.full((8,), torch.inf).double()
    for codes in product(range(4), repeat=3):
        tried = start.copy()
        tried.codes[:] = torch.tensor(codes).double()
        problem._refit(tried, start.scale)
        best = torch.minimum(best, problem.error(tried.weight))
    found = problem.error(problem.solve(start, 20, restarts=60).weight)
    assert bool((found >= best - 1e-9).all())
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-9)


def test_weights_that_are_on_the_grid_are_found_again() -> None:
    case = _Case(2, bits=4)
    on_grid = case.start.weight
    y = case.x @ on_grid.float().T + 3
    problem = LayerProblem(Moments.of(case.x, y, None, True), on_grid.float(), 15)
    found = problem.solve(case.start, 10)
    assert torch.equal(found.codes, case.start.codes)
    torch.testing.assert_close(found.weight, on_grid, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(problem.bias(found.weight).float(), torch.full((OUTPUTS,), 3.0), rtol=1e-3, atol=1e-3)


def test_inputs_that_are_always_zero_leave_the_weight_at_the_nearest_code() -> None:
    case = _Case(4, bits=4)
    case.x[:, 2] = 0
    problem = LayerProblem(Moments.of(case.x, case.x @ case.exact.T, None, True), case.exact, 15)
    found = problem.solve(case.start, 10)
    wide = found.wide(found.scale), found.wide(found.zero)
    nearest = (case.exact.double() / wide[0] + wide[1]).round().clamp(0, 15)
    case.problem._sweep(found)
    assert bool(((found.codes - nearest)[:, 2].abs() <= 1).all())
    assert bool(torch.isfinite(found.weight).all())


@patient
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_rows_are_all_of_them_or_enough_different_ones(count: int, inputs: int, seed: int) -> None:
    found = list(chosen_rows(count, inputs, seed, least=50, ratio=4))
    assert len(found) == min(count, max(50, 4 * inputs))
    assert found == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < count
    assert found == list(chosen_rows(count, inputs, seed, least=50, ratio=4))


# -- layers -------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": (2, 1), "padding": 2, "stride": 2},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "same", "padding_mode": "replicate", "dilation": 2},
    {"kernel_size": 3, "padding": 1, "bias": False},
]


@pytest.mark.parametrize("asked", CONVOLUTIONS, ids=str)
def test_windows_times_the_weight_are_the_convolution(asked: dict[str, Any]) -> None:
    convolution = nn.Conv2d(3, 5, **asked).requires_grad_(False)
    layer = QuantizedLayer(convolution, 4, None, ())
    x = torch.randn(2, 3, 9, 8)
    exact = convolution(x).movedim(1, -1).flatten(0, -2)
    chosen = torch.tensor([0, 3, len(exact) - 1])
    for pick, expected in ((torch.arange, exact), (lambda _: chosen, exact[chosen])):
        found = layer.windows(x, pick) @ convolution.weight.flatten(1).T
        found = found if convolution.bias is None else found + convolution.bias
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6)])
def test_windows_of_a_linear_layer_are_its_rows(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(6, 4).requires_grad_(False)
    layer, x = QuantizedLayer(linear, 4, None, ()), torch.randn(*(2,) * (len(shape) == 1), *shape)
    found = functional.linear(layer.windows(x, torch.arange), linear.weight, linear.bias)
    torch.testing.assert_close(found, linear(x).flatten(0, -2))


def _layer(segments: tuple[int, ...] = (), bits: int = 3, bias: bool = True) -> tuple[QuantizedLayer, nn.Conv2d]:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        convolution = nn.Conv2d(6, 5, 3, padding=1, bias=bias).requires_grad_(False)
    # Halves as unlike as those of a skip concatenation.
    convolution.weight[:, 4:] *= 20
    layer = QuantizedLayer(convolution, bits, None, segments)
    layer.round_to_nearest(search=True)
    return layer, convolution


def _smooth() -> Tensor:
    """Images whose pixels look like their neighbours: with independent ones, nearest is already the best."""
    noise = torch.randn(16, 6, 12, 12, generator=torch.Generator().manual_seed(1))
    return functional.avg_pool2d(noise, 5, 1) * 5 + 0.5


@pytest.mark.parametrize("segments", [(), (4, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fit_lowers_the_layers_error_and_off_it_is_exact(segments: tuple[int, ...], bias: bool) -> None:
    layer, convolution = _layer(segments, bias=bias)
    x = _smooth()
    exact = convolution(x)
    layer.on = True
    nearest = float((layer(x) - exact).square().mean())
    before = [part.grid for part in layer.parts]
    rows = exact.movedim(1, -1).flatten(0, -2)
    fit_moments(layer, Moments.of(layer.windows(x, torch.arange), rows, None, bias), sweeps=6, restarts=2)
    assert float((layer(x) - exact).square().mean()) < 0.7 * nearest
    for part, grid in zip(layer.parts, before, strict=True):
        assert torch.equal(part.grid.zero, grid.zero)
        assert not torch.equal(part.grid.scale, grid.scale)
        assert part.grid.scale.dtype == torch.float32
    assert (layer.bias is None) == (not bias)
    layer.on = False
    assert torch.equal(layer(x), exact)


def test_segments_are_fitted_with_scales_of_their_own() -> None:
    layer, convolution = _layer((4, 2))
    x = _smooth()
    rows = convolution(x).movedim(1, -1).flatten(0, -2)
    windows = layer.windows(x, torch.arange)
    first = [part.grid.scale.clone() for part in layer.parts]
    fit_moments(layer, Moments.of(windows, rows, None, True), sweeps=6)
    moved = [part.grid.scale / scale for part, scale in zip(layer.parts, first, strict=True)]
    assert not torch.allclose(moved[0], moved[1], rtol=1e-3)
    # What the parts hold is what the objective was told: codes, scales and bias belong together.
    weight = torch.cat([part.values for part in layer.parts], 1).flatten(1)
    found = windows @ weight.T + layer.bias
    layer.on = True
    torch.testing.assert_close(layer(x).movedim(1, -1).flatten(0, -2), found, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close((rows - found).mean(0), torch.zeros(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "codes",
    [
        lambda good: [],
        lambda good: [good[0].flatten()],
        lambda good: [good[0].to(torch.int64)],
        lambda good: [good[0] + 100],
    ],
)
def test_a_fit_that_does_not_fit_changes_nothing(codes: Any) -> None:
    layer, _ = _layer()
    good, scale = layer.parts[0].codes, layer.parts[0].grid.scale
    with pytest.raises(ValueError, match=r"parts|codes"):
        layer.set_fit(codes([good]), [2 * scale.flatten()], None)
    assert layer.parts[0].grid.scale is scale
    assert layer.parts[0].codes is good
