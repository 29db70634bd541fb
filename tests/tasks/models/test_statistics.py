"""Statistics along lambda: integrals at any lambda, what is read where, files that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fewstep.errors import DataError, ScheduleError
from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import taylor
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_schedule import ContinuousVP
from fewstep.tasks.models.statistics import EmpiricalStatistics, ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import sample

NOISE = ContinuousVP()
GRID = np.linspace(NOISE.lambda_start, NOISE.lambda_end, 33)
SHAPE = (1, 2, 2)


def statistics(l: float = 1.0, s: float = 0.0, b: float = 0.0, rounded: bool = False) -> EmpiricalStatistics:
    maps = (np.full((len(GRID), *SHAPE), value) for value in (l, s, b))
    return EmpiricalStatistics(GRID, *maps, rounded)


def difference(prediction: Prediction, other: Prediction, empirical: EmpiricalStatistics) -> float:
    """Largest difference between two predictions' samples of a third-order schedule at times off the grid."""
    share = np.array([0.0, 0.17, 0.391, 0.62, 0.833, 1.0])
    lambdas = tuple(NOISE.lambda_start + share * (NOISE.lambda_end - NOISE.lambda_start))

    def denoiser(x: torch.Tensor, time: float) -> torch.Tensor:
        """Exact for data of mean 0.4 and variance 0.25."""
        alpha, sigma = NOISE.alpha_sigma(NOISE.lambda_at(time))
        return sigma * (x - 0.4 * alpha) / (0.25 * alpha**2 + sigma**2)

    def run(kind: Prediction) -> torch.Tensor:
        steps = tuple(Step(prediction=kind, predictor=taylor(min(3, i + 1))) for i in range(5))
        tables = compile_schedule(
            SolverSchedule.build(lambdas=lambdas, steps=steps), NOISE, "epsilon", ModelStatistics(None, empirical)
        )
        x = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return sample(tables, denoiser, x)

    return float((run(prediction) - run(other)).abs().max())


def test_l_of_one_is_data_prediction_at_any_times_unless_they_are_rounded() -> None:
    found = {kind: difference("ems", "data", statistics(rounded=kind)) for kind in (False, True)}
    assert found[False] < 1e-3
    assert found[True] > 20 * found[False]


def test_integrals_between_grid_points_are_those_of_the_straight_lines() -> None:
    slope, offset = np.array([0.3, -0.2, 0.0, 1.0]).reshape(SHAPE), np.array([1.0, 0.5, 0.2, 0.0]).reshape(SHAPE)
    l = offset + slope * (GRID - GRID[0]).reshape(-1, 1, 1, 1)
    e = EmpiricalStatistics(GRID, l, 0 * l, 0 * l, rounded=False)
    for lambda_ in (GRID[0], GRID[0] + 0.013, GRID[7], GRID[7] + 0.11, GRID[-1] - 0.002, GRID[-1]):
        d, place = lambda_ - GRID[0], e.nearest(lambda_)
        np.testing.assert_allclose(e.l[place], offset + slope * d, atol=1e-12)
        np.testing.assert_allclose(e.L[place], offset * d + 0.5 * slope * d * d, rtol=1e-9, atol=1e-12)


def test_moments_of_order_zero_are_differences_of_the_integral_they_generalise() -> None:
    e = statistics(l=0.7, s=-0.4)
    for first, last in ((GRID[0] + 0.05, GRID[3]), (GRID[4] + 0.01, GRID[4] + 0.015), (GRID[2], GRID[30] + 0.07)):
        s, t = e.nearest(first), e.nearest(last)
        expected = np.exp(-e.L[s] - e.S[s]) * (e.W[t] - e.W[s])
        np.testing.assert_allclose(e.moment(s, t, 0), expected, rtol=2e-4)
        h = last - first
        exact = (np.exp(0.3 * h) * (0.3 * h - 1) + 1) / 0.09
        np.testing.assert_allclose(e.moment(s, t, 1), np.full(SHAPE, exact), rtol=2e-3)
        assert not e.moment(t, s, 1).any()


def test_lambda_outside_the_grid_is_refused_with_its_range() -> None:
    gap = GRID[1] - GRID[0]
    for e in (statistics(), statistics(rounded=True)):
        assert e.nearest(GRID[0] - 0.49 * gap) == 0
        for outside in (GRID[0] - 0.6 * gap, GRID[-1] + 0.6 * gap):
            with pytest.raises(ScheduleError, match="outside the model's statistics"):
                e.nearest(outside)


def test_a_file_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=(len(GRID), *SHAPE)).astype(np.float32) for _ in range(3))
    before = ModelStatistics(rng.normal(size=SHAPE).astype(np.float32), EmpiricalStatistics(GRID, *maps))
    before.save(tmp_path / "deep" / "s.safetensors")
    after = ModelStatistics.load(tmp_path / "deep" / "s.safetensors")
    assert before.mean is not None
    assert after.mean is not None
    assert before.empirical is not None
    assert after.empirical is not None
    assert np.array_equal(before.mean, after.mean)
    for name in "lsb":
        assert np.array_equal(before.empirical.maps[name], after.empirical.maps[name])
    np.testing.assert_allclose(after.empirical.lambdas, GRID, atol=1e-6)
    assert not after.empirical.rounded
    after.save(tmp_path / "again.safetensors")
    assert ModelStatistics.load(tmp_path / "again.safetensors").hash == after.hash
    ModelStatistics(before.mean).save(tmp_path / "mean.safetensors")
    assert ModelStatistics.load(tmp_path / "mean.safetensors").empirical is None


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewstep statistics"):
        ModelStatistics.load(tmp_path / "absent")
    torn = tmp_path / "torn"
    torn.write_bytes(b"\x08\x00\x00\x00torn")
    with pytest.raises(DataError, match="torn"):
        ModelStatistics.load(torn)
    maps = {name: np.zeros((33, *SHAPE), np.float32) for name in "lsb"}
    save_file({"lambdas": GRID, "l": maps["l"], "s": maps["s"]}, tmp_path / "part")
    with pytest.raises(DataError, match="part has no b"):
        ModelStatistics.load(tmp_path / "part")
    save_file({"lambdas": GRID[:5], **maps}, tmp_path / "short")
    with pytest.raises(DataError, match=r"short.*5 lambdas"):
        ModelStatistics.load(tmp_path / "short")
    save_file({"lambdas": GRID, **maps | {"s": maps["s"] + np.float32(np.nan)}}, tmp_path / "nan")
    with pytest.raises(DataError, match=r"nan.*finite"):
        ModelStatistics.load(tmp_path / "nan")
    with pytest.raises(DataError, match="uniform rising"):
        EmpiricalStatistics(GRID[::-1], *maps.values())


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    files, other = find_model("digits-ddpm"), find_model("digits-edm")
    path = tmp_path / "digits.safetensors"
    ModelStatistics(np.zeros(files.shape), model=files.hash).save(path)
    assert ModelStatistics.load_for(path, files).model == files.hash
    with pytest.raises(DataError, match="another model than digits-edm"):
        ModelStatistics.load_for(path, other)
    ModelStatistics(np.zeros((3, 4, 4))).save(path)
    with pytest.raises(DataError, match="another model"):
        ModelStatistics.load_for(path, files)
