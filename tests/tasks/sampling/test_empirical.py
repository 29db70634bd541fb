"""Measured statistics: closed forms on Gaussian data, the same file after a kill, better samples on a real model."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError, EvaluationError
from fewstep.pipeline.commands.statistics import command
from fewstep.search_spaces.schedule import Prediction, SolverSchedule, Step
from fewstep.search_spaces.schedule.formula import taylor
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import ContinuousVP, NoiseSchedule
from fewstep.tasks.models.statistics import EmpiricalStatistics, ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.empirical import MeasurePlan, Subject, measure
from fewstep.tasks.sampling.execute import sample
from fewstep.tasks.sampling.grids import grid, preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise

SHAPE = (1, 2, 2)
MEAN = torch.tensor([0.3, -0.8, 0.0, 1.1]).reshape(SHAPE)
VARIANCE = torch.tensor([0.05, 0.3, 1.0, 0.6]).reshape(SHAPE)
SMALL = MeasurePlan(points=9, trajectories=40, steps=2, batch=16)


def empirical_of(statistics: ModelStatistics) -> EmpiricalStatistics:
    assert statistics.empirical is not None
    return statistics.empirical


def gaussian(noise: NoiseSchedule, output: str = "epsilon") -> Subject:
    """The exact network of N(MEAN, diag(VARIANCE))."""

    def on(indices: Sequence[int]) -> Callable[[Tensor, float], Tensor]:
        def call(x: Tensor, time: float) -> Tensor:
            lambda_ = noise.lambda_at(time)
            alpha, sigma = noise.alpha_sigma(lambda_)
            x = x / noise.input_scale(lambda_)
            eps = sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
            means = noise.output_map(output, lambda_)
            return (eps - means.eps_x * x) / means.eps_o

        return call

    return Subject(on, noise, output, SHAPE, identity="gaussian")


FAMILIES = {
    "vp": (ContinuousVP(), "epsilon"),
    "vp-v": (ContinuousVP(), "v_prediction"),
    "edm": (EDM(0.01, 80.0, 0.5), "epsilon"),
    "flow": (FlowMatching(1000.0), "flow_prediction"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_gaussian_data_have_l_s_b_in_closed_form(family: str) -> None:
    # eps = sigma (x - alpha m) / V with V = alpha^2 v + sigma^2: l = sigma^2 / V, f = -l m, and f' = 2 m l (1 - l)
    # holds for every x, so that s = 0 and b = f'.
    noise, output = FAMILIES[family]
    found = measure(gaussian(noise, output), MeasurePlan(points=97, trajectories=1024, steps=2, batch=512))
    e = empirical_of(found)
    l = 1 / (1 + VARIANCE.double().numpy() * np.exp(2 * e.lambdas).reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(e.maps["l"], l, atol=2e-5)
    np.testing.assert_allclose(e.maps["s"], np.zeros_like(l), atol=0)
    np.testing.assert_allclose(e.maps["b"], 2 * MEAN.double().numpy() * l * (1 - l), atol=5e-3)
    error = np.abs(np.asarray(found.mean) - MEAN.numpy()) / np.sqrt(VARIANCE.numpy() / 1024)
    assert error.max() < 4


def test_one_first_order_step_is_nearly_exact_on_gaussian_data(tmp_path: Path) -> None:
    noise = ContinuousVP()
    subject = gaussian(noise)
    measure(subject, MeasurePlan(points=65, trajectories=16, steps=2)).save(tmp_path / "s")
    statistics = ModelStatistics.load(tmp_path / "s")
    ends = (noise.lambda_start, noise.lambda_end)
    x = starting_noise(1, 0, 64, SHAPE)
    (a0, s0), (a1, s1) = (noise.alpha_sigma(v) for v in ends)
    v0, v1 = a0**2 * VARIANCE + s0**2, a1**2 * VARIANCE + s1**2
    exact = a1 * MEAN + torch.sqrt(v1 / v0) * (x - a0 * MEAN)

    def error(prediction: Prediction) -> float:
        schedule = SolverSchedule.build(lambdas=ends, steps=(Step(prediction=prediction),))
        out = sample(compile_schedule(schedule, noise, "epsilon", statistics), subject.on(range(64)), x)
        return float((out - exact).abs().max())

    assert error("ems") < 0.01
    assert error("data") > 100 * error("ems")


def test_l_s_b_of_a_mixture_are_what_their_definitions_say(mixture: Any) -> None:
    # Coupled pixels and a varying f. The definitions are evaluated on their own: points of the forward process
    # (the law of the trajectories where the denoiser is exact), Jacobians and eps' by automatic differentiation.
    noise, bumps = ContinuousVP(), mixture([[0.8, -0.3, 0.2, 0.5], [-0.6, 0.4, -0.9, 0.1]], [0.5, 0.35], [0.4, 0.6])

    def eps_at(x: Tensor, lambda_: Tensor) -> Tensor:
        alpha = torch.sqrt(torch.sigmoid(2 * lambda_))
        return torch.as_tensor(bumps.eps(x, alpha, torch.sqrt(torch.sigmoid(-2 * lambda_))))

    def on(indices: Sequence[int]) -> Callable[[Tensor, float], Tensor]:
        return lambda x, t: eps_at(x.double(), torch.tensor(noise.lambda_at(t), dtype=torch.float64)).float()

    plan = MeasurePlan(points=49, trajectories=6000, steps=2, batch=2000)
    e = empirical_of(measure(Subject(on, noise, "epsilon", SHAPE), plan))
    draw = torch.Generator().manual_seed(0)
    n = 40_000
    part = (torch.rand(n, generator=draw) < 0.6).long()
    x0 = bumps.means[part] + bumps.stds[part, None] * torch.randn(n, 4, dtype=torch.float64, generator=draw)
    normal = torch.randn(n, 4, dtype=torch.float64, generator=draw)

    def diagonal(lambda_: float) -> tuple[Tensor, Tensor, Tensor, float, float]:
        alpha, sigma = noise.alpha_sigma(lambda_)
        x = (alpha * x0 + sigma * normal).reshape(n, *SHAPE).requires_grad_()
        eps = eps_at(x, torch.tensor(lambda_, dtype=torch.float64))
        rows = [torch.autograd.grad(eps.flatten(1)[:, i].sum(), x, retain_graph=True)[0] for i in range(4)]
        own = torch.stack([row.flatten(1)[:, i] for i, row in enumerate(rows)], 1)
        return sigma * own.mean(0).reshape(SHAPE), x.detach(), eps.detach(), alpha, sigma

    for g in (12, 24, 36):
        lambda_ = float(e.lambdas[g])
        l, x, eps, alpha, sigma = diagonal(lambda_)
        slope = (diagonal(lambda_ + 0.01)[0] - diagonal(lambda_ - 0.01)[0]) / 0.02
        # d alpha / d lambda = alpha sigma^2 and d(x / alpha) = -e^-lambda eps d lambda.
        velocity = sigma**2 * x - sigma * eps
        at = torch.tensor(lambda_, dtype=torch.float64)
        _, total = torch.autograd.functional.jvp(eps_at, (x, at), (velocity, torch.ones_like(at)))
        f = (sigma * eps - l * x) / alpha
        f1 = math.exp(-lambda_) * (total + (l - 1) * eps) - slope * x / alpha
        s = ((f * f1).mean(0) - f.mean(0) * f1.mean(0)) / (f * f).mean(0).sub(f.mean(0) ** 2)
        b = f1.mean(0) - s * f.mean(0)
        np.testing.assert_allclose(e.maps["l"][g], l, atol=0.02)
        np.testing.assert_allclose(e.maps["s"][g], s, atol=0.08)
        np.testing.assert_allclose(e.maps["b"][g], b, atol=0.08)


# -- streaming ------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Ends a measurement between two batches."""


def same(a: ModelStatistics, b: ModelStatistics, atol: float) -> None:
    assert a.mean is not None
    assert b.mean is not None
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=atol)
    for name in "lsb":
        np.testing.assert_allclose(empirical_of(a).maps[name], empirical_of(b).maps[name], rtol=0, atol=atol)


def test_the_batch_size_changes_nothing() -> None:
    subject = gaussian(ContinuousVP())
    whole = measure(subject, SMALL)
    for batch in (1, 7, 40):
        same(whole, measure(subject, replace(SMALL, batch=batch)), 1e-6)


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_measurement_goes_on_to_the_same_numbers(batches: int, tmp_path: Path) -> None:
    subject, partial = gaussian(ContinuousVP()), tmp_path / "s.partial"
    sampled: list[int] = []

    def stop(done: int, total: int) -> None:
        if done == 16 * batches:
            raise StoppedError

    with pytest.raises(StoppedError):
        measure(subject, SMALL, partial, stop)

    def on(indices: Sequence[int]) -> Callable[[Tensor, float], Tensor]:
        sampled.extend(indices)
        return subject.on(indices)

    resumed = measure(replace(subject, on=on), SMALL, partial)
    assert sampled == list(range(16 * batches, 40))
    assert resumed.hash == measure(subject, SMALL).hash


def test_a_partial_file_of_something_else_is_refused(tmp_path: Path) -> None:
    subject, partial = gaussian(ContinuousVP()), tmp_path / "s.partial"
    measure(subject, SMALL, partial)
    for other, plan in ((subject, replace(SMALL, seed=1)), (replace(subject, identity="other"), SMALL)):
        with pytest.raises(ConfigurationError, match=r"s\.partial was begun with other settings"):
            measure(other, plan, partial)
    partial.write_bytes(partial.read_bytes()[:100])
    with pytest.raises(DataError, match=r"s\.partial is damaged.*delete it"):
        measure(subject, SMALL, partial)


def test_plans_that_measure_nothing_are_refused() -> None:
    for name, value in (("points", 2), ("trajectories", 15), ("steps", 0), ("batch", 0), ("seed", -1)):
        with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
            replace(SMALL, **{name: value})
    assert MeasurePlan(trajectories=1, mean_only=True).calls == 63 * 4 + 1


def test_a_model_that_explodes_is_reported() -> None:
    subject = replace(gaussian(ContinuousVP()), on=lambda indices: lambda x, t: x * math.nan)
    with pytest.raises(EvaluationError, match="not finite"):
        measure(subject, SMALL)


def test_mean_only_gives_the_same_mean_and_nothing_else() -> None:
    subject = gaussian(ContinuousVP())
    alone = measure(subject, replace(SMALL, mean_only=True))
    assert alone.empirical is None
    assert alone.mean is not None
    np.testing.assert_array_equal(alone.mean, np.asarray(measure(subject, SMALL).mean))


# -- a real model ---------------------------------------------------------------------------------------


def test_conditions_decide_what_is_measured() -> None:
    files = find_model("fashion-ddpm")
    plan = MeasurePlan(points=5, trajectories=8, steps=1, mean_only=True)

    def mean(labels: str) -> np.ndarray[Any, Any]:
        denoiser = Denoiser(files, "cpu", Conditions(labels=labels))
        return np.asarray(measure(Subject(denoiser.on, files.noise, files.prediction_type, files.shape), plan).mean)

    trousers, bags = mean("1"), mean("8")
    assert np.abs(trousers - bags).max() > 0.3


@pytest.mark.slow
def test_measured_statistics_make_better_steps_on_the_digits(tmp_path: Path) -> None:
    files = find_model("digits-ddpm")
    denoiser = Denoiser(files)
    subject = Subject(denoiser.on, files.noise, files.prediction_type, files.shape)
    measure(subject, MeasurePlan(points=33, trajectories=64, steps=4)).save(tmp_path / "s")
    statistics = ModelStatistics.load(tmp_path / "s")
    x = starting_noise(9, 0, 64, files.shape)

    def run(schedule: SolverSchedule) -> Tensor:
        tables = compile_schedule(schedule, files.noise, files.prediction_type, statistics)
        return sample(tables, denoiser.on(range(64)), x)

    target = run(preset_on_grid("dpmpp-2m/uniform-lambda", files.noise, 150))

    def error(prediction: Prediction, order: int, nfe: int) -> float:
        steps = tuple(Step(prediction=prediction, predictor=taylor(min(order, i + 1))) for i in range(nfe))
        lambdas = grid("uniform-lambda", files.noise, nfe)
        out = run(SolverSchedule.build(lambdas=lambdas, steps=steps))
        assert bool(torch.isfinite(out).all())
        return float((out - target).square().mean().sqrt())

    assert error("ems", 1, 5) < 0.9 * error("data", 1, 5)
    assert error("ems", 2, 5) < 0.9 * error("data", 2, 5)
    assert error("ems", 2, 16) < error("ems", 1, 16)


def test_what_the_command_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for model, labels, words in (("digits-ddpm", "0", "without labels"), ("absent", "none", "no model 'absent'")):
        with pytest.raises(ConfigurationError, match=words):
            command(model=model, out=tmp_path / "s", labels=labels)
    with pytest.raises(ConfigurationError, match="trajectories is 5"):
        command(model="digits-ddpm", out=tmp_path / "s", trajectories=5)
    (tmp_path / "s").write_text("results of another day")
    with pytest.raises(ConfigurationError, match="is there already"):
        command(model="digits-ddpm", out=tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


COMMAND = ("statistics", "--model", "digits-ddpm", "--points", "9", "--trajectories", "48", "--batch", "8")


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_file(tmp_path: Path) -> None:
    def start(out: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-P", "-m", "fewstep.pipeline.cli", *COMMAND, "--out", out]
        return subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    settings = {"model": "digits-ddpm", "points": 9, "trajectories": 48, "batch": 8}
    command(**settings, out=tmp_path / "whole.safetensors")
    partial = tmp_path / "killed.safetensors.partial"
    with start("killed.safetensors") as killed:
        until = time.monotonic() + 100
        while not partial.exists() and time.monotonic() < until:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
    assert partial.exists()
    assert not (tmp_path / "killed.safetensors").exists()
    with start("killed.safetensors") as resumed:
        out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    assert "trajectory 8/48" not in out
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not partial.exists()
    with pytest.raises(ConfigurationError, match=r"killed\.safetensors is there already"):
        command(**settings, out=tmp_path / "killed.safetensors")
