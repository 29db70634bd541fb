"""What a process with a model answers: results that depend on the task alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.quantization import named
from fewstep.tasks import worker as module
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.worker import GROUP, Task, Worker, WorkerSettings


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(WorkerSettings("digits-ddpm"))


@pytest.fixture(scope="module")
def schedule(worker: Worker) -> str:
    return preset_on_grid("dpmpp-2m/karras-zero", worker.files.noise, 2).to_json()


@pytest.fixture(scope="module")
def teacher(worker: Worker) -> str:
    return preset_on_grid("ddim/uniform-t-zero", worker.files.noise, 6).to_json()


def test_samples_are_images_in_range_and_the_seed_decides_them(worker: Worker, schedule: str) -> None:
    images = worker.sample(schedule, 1, 0, 8)
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.float32
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert torch.equal(images, worker.sample(schedule, 1, 0, 8))
    assert not torch.allclose(images, worker.sample(schedule, 2, 0, 8), atol=0.1)


def test_image_i_is_the_same_wherever_the_batch_begins(worker: Worker, schedule: str) -> None:
    whole = worker.sample(schedule, 1, 0, 12)
    for start, count in ((0, 5), (5, 7), (11, 1)):
        part = worker.sample(schedule, 1, start, count)
        # Float32 rounding of the network depends on the batch; sigma / alpha of the first call, about 150, scales it.
        assert torch.allclose(part, whole[start : start + count], atol=1e-3)


@pytest.mark.parametrize("batch", [GROUP, 64])
def test_moments_of_a_group_are_bit_equal_in_every_task(
    batch: int, worker: Worker, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "batch", batch)
    long = worker.run(Task("k", "moments", schedule, 3, 0, 3 * GROUP))
    assert long.error == ""
    assert [m.count for m in long.moments] == [GROUP] * 3
    assert long.denoiser_calls == 2 * 3 * GROUP
    short = [worker.run(Task("k", "moments", schedule, 3, GROUP * i, GROUP)).moments[0] for i in (2, 0, 1)]
    assert [m.to_bytes() for m in (short[1], short[2], short[0])] == [m.to_bytes() for m in long.moments]


def test_moments_are_those_of_the_features_of_the_samples(worker: Worker, schedule: str) -> None:
    result = worker.run(Task("k", "moments", schedule, 3, 0, GROUP + 30))
    assert [m.count for m in result.moments] == [GROUP, 30]
    features = worker.extractor(worker.sample(schedule, 3, 0, GROUP + 30))
    whole, merged = Moments.of(features), merge_all(result.moments)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-3, atol=1e-3)


def test_the_distance_is_paired_and_counts_the_teacher_once(schedule: str, teacher: str) -> None:
    worker = Worker(WorkerSettings("digits-ddpm"))
    task = Task("k", "distance", schedule, 3, 0, 16, teacher)
    first, second = worker.run(task), worker.run(task)
    assert (first.denoiser_calls, second.denoiser_calls) == ((6 + 2) * 16, 2 * 16)
    assert first.pixel is not None
    assert first.feature is not None
    assert second.feature is not None
    assert first.pixel.shape == first.feature.shape == (16,)
    assert first.feature.tobytes() == second.feature.tobytes()
    difference = worker.sample(schedule, 3, 0, 16) - worker.sample(teacher, 3, 0, 16)
    np.testing.assert_allclose(first.pixel, difference.square().mean((1, 2, 3)).sqrt(), rtol=1e-5)
    itself = worker.run(Task("k", "distance", teacher, 3, 0, 16, teacher))
    assert itself.feature is not None
    assert not itself.feature.any()
    # Other noise is another teacher sample.
    assert worker.run(Task("k", "distance", schedule, 4, 0, 16, teacher)).denoiser_calls == (6 + 2) * 16


def test_tasks_and_results_cross_process_borders(worker: Worker, schedule: str) -> None:
    task = Task("k", "images", schedule, 3, 2, 3)
    result = pickle.loads(pickle.dumps(worker.run(task)))
    assert result.task == task
    assert result.images.shape == (3, 1, 8, 8)
    assert result.images.dtype == np.float32
    assert result.versions == {"torch": torch.__version__}


def test_what_cannot_be_evaluated_comes_back_with_the_reason(worker: Worker, schedule: str) -> None:
    noise = worker.files.noise
    lambdas = (noise.lambda_start - 2.0, -1.0, 1.0)
    foreign = preset_on_grid("ddim", noise, 2).model_copy(update={"lambdas": lambdas}).to_json()
    for text, words in (("{}", "ScheduleError: not a valid"), (foreign, "starts at lambda")):
        result = worker.run(Task("k", "moments", text, 0, 0, GROUP))
        assert words in result.error
        assert result.moments == ()
        assert result.denoiser_calls == 0


def test_values_that_are_not_finite_are_an_error(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(WorkerSettings("digits-ddpm"))
    healthy = worker.denoiser.network.module.forward

    def explodes(*arguments: object, **named: object) -> object:
        output = healthy(*arguments, **named)
        output.sample[0] = float("inf")
        return output

    monkeypatch.setattr(worker.denoiser.network.module, "forward", explodes)
    result = worker.run(Task("k", "moments", schedule, 0, 0, GROUP))
    assert result.error.startswith("EvaluationError: schedule ")
    assert "not finite" in result.error
    with pytest.raises(EvaluationError):
        worker.sample(schedule, 0, 0, 4)


def test_a_worker_without_features_samples_and_nothing_else(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise AssertionError("no extractor may be loaded")

    monkeypatch.setattr(module, "make_extractor", none)
    worker = Worker(WorkerSettings("digits-ddpm"), features=False)
    assert worker.run(Task("k", "images", schedule, 0, 0, 2)).error == ""
    assert "without features" in worker.run(Task("k", "moments", schedule, 0, 0, GROUP)).error
    with pytest.raises(ConfigurationError):
        _ = worker.extractor


def test_a_config_is_calibrated_once_and_brings_its_figures(schedule: str, teacher: str, tmp_path: Path) -> None:
    settings = WorkerSettings("digits-ddpm", calibration=schedule, cache=str(tmp_path))
    config = named("w4a8-naive-paper", images=16).model_dump_json()
    first, second = Worker(settings), Worker(settings)
    task = Task("k", "distance", schedule, 3, 0, 16, teacher, config)
    results = [first.run(task), first.run(task), second.run(task)]
    assert [r.error for r in results] == [""] * 3
    # The schedule has 2 calls, the teacher 6; each worker samples the teacher, only one calibrates.
    assert [r.denoiser_calls for r in results] == [(2 + 6 + 2) * 16, 2 * 16, (2 + 6) * 16]
    assert results[0].metrics == results[1].metrics == results[2].metrics
    figures = results[0].metrics
    assert 0 < figures["size_bytes"] < 4 * figures["parameters"]
    assert 4 * 8 * figures["multiply_adds_a_call"] < figures["bit_operations_a_call"]
    assert figures["bit_operations_a_call"] < 32 * 32 * figures["multiply_adds_a_call"]
    # In full precision there is nothing to say, and nothing is calibrated.
    exact = first.run(Task("k", "images", schedule, 3, 0, 2))
    assert (exact.metrics, exact.denoiser_calls) == ({}, 4)


def test_a_worker_without_a_cache_does_not_quantise(worker: Worker, schedule: str) -> None:
    task = Task("k", "images", schedule, 3, 0, 2, quantization=named("w8a8-naive-paper").model_dump_json())
    result = worker.run(task)
    assert "ConfigurationError" in result.error
    assert result.metrics == {}
