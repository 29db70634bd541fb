"""What a process with a model answers: results that depend on the task alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.point import QuantizationPoint, joint, parse_point
from fewstep.search_spaces.quantization import named
from fewstep.tasks.metrics import metric
from fewstep.tasks.metrics.moments import Moments, merge_all
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import GROUP, Subject, Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker, machine_class


def _moments(result: TaskResult) -> list[Moments]:
    found = [part.moments for part in result.parts]
    assert None not in found
    return [m for m in found if m is not None]


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(WorkerSettings(Subject("digits-ddpm")))


@pytest.fixture(scope="module")
def schedule(worker: Worker) -> str:
    return preset_on_grid("dpmpp-2m/karras-zero", worker.files.noise, 2).to_json()


@pytest.fixture(scope="module")
def teacher(worker: Worker) -> str:
    return preset_on_grid("ddim/uniform-t-zero", worker.files.noise, 6).to_json()


def test_samples_are_images_in_range_and_the_seed_decides_them(worker: Worker, schedule: str) -> None:
    images = worker.render(schedule, 1, 0, 8)
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.float32
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert torch.equal(images, worker.render(schedule, 1, 0, 8))
    assert not torch.allclose(images, worker.render(schedule, 2, 0, 8), atol=0.1)


def test_image_i_is_the_same_wherever_the_batch_begins(worker: Worker, schedule: str) -> None:
    whole = worker.render(schedule, 1, 0, 12)
    for start, count in ((0, 5), (5, 7), (11, 1)):
        part = worker.render(schedule, 1, start, count)
        # Float32 rounding of the network depends on the batch; sigma / alpha of the first call, about 150, scales it.
        assert torch.allclose(part, whole[start : start + count], atol=1e-3)


@pytest.mark.parametrize("batch", [GROUP, 64])
def test_moments_of_a_group_are_bit_equal_in_every_task(
    batch: int, worker: Worker, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "batch", batch)
    long = worker.run(Task("k", "frechet", schedule, 3, 0, 3 * GROUP))
    assert long.error == ""
    assert [m.count for m in _moments(long)] == [GROUP] * 3
    assert long.denoiser_calls == 2 * 3 * GROUP
    short = [_moments(worker.run(Task("k", "frechet", schedule, 3, GROUP * i, GROUP)))[0] for i in (2, 0, 1)]
    assert [m.to_bytes() for m in (short[1], short[2], short[0])] == [m.to_bytes() for m in _moments(long)]


def test_moments_are_those_of_the_features_of_the_samples(worker: Worker, schedule: str) -> None:
    result = worker.run(Task("k", "frechet", schedule, 3, 0, GROUP + 30))
    assert [(part.start, part.count) for part in result.parts] == [(0, GROUP), (GROUP, 30)]
    assert [m.count for m in _moments(result)] == [GROUP, 30]
    features = worker.extractor(worker.render(schedule, 3, 0, GROUP + 30))
    whole, merged = Moments.of(features), merge_all(_moments(result))
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-3, atol=1e-3)


def test_the_distance_is_paired_and_counts_the_teacher_once(schedule: str, teacher: str) -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    arguments = {"teacher": teacher}
    task = Task("k", "distance", schedule, 3, 0, 16, arguments)
    first, second = worker.run(task), worker.run(task)
    assert (first.denoiser_calls, second.denoiser_calls) == ((6 + 2) * 16, 2 * 16)
    (found,), (again,) = first.parts, second.parts
    assert (found.start, found.count, found.moments) == (0, 16, None)
    assert found.values["pixel"].shape == found.values["feature"].shape == (16,)
    assert found.values["feature"].tobytes() == again.values["feature"].tobytes()
    difference = worker.render(schedule, 3, 0, 16) - worker.render(teacher, 3, 0, 16)
    np.testing.assert_allclose(found.values["pixel"], difference.square().mean((1, 2, 3)).sqrt(), rtol=1e-5)
    (itself,) = worker.run(Task("k", "distance", teacher, 3, 0, 16, arguments)).parts
    assert not itself.values["feature"].any()
    # Other noise is another teacher sample.
    assert worker.run(Task("k", "distance", schedule, 4, 0, 16, arguments)).denoiser_calls == (6 + 2) * 16


def test_tasks_and_results_cross_process_borders(worker: Worker, schedule: str) -> None:
    task = Task("k", "images", schedule, 3, 2, 3)
    result = pickle.loads(pickle.dumps(worker.run(task)))
    assert result.task == task
    assert result.images is not None
    assert result.images.shape == (3, 1, 8, 8)
    assert result.images.dtype == np.float32
    assert result.versions == {"torch": torch.__version__, "machine": machine_class()}


def test_what_cannot_be_evaluated_comes_back_with_the_reason(worker: Worker, schedule: str) -> None:
    noise = worker.files.noise
    lambdas = (noise.lambda_start - 2.0, -1.0, 1.0)
    foreign = preset_on_grid("ddim", noise, 2).model_copy(update={"lambdas": lambdas}).to_json()
    for text, words in (("{}", "ScheduleError: not a valid"), (foreign, "starts at lambda")):
        result = worker.run(Task("k", "frechet", text, 0, 0, GROUP))
        assert words in result.error
        assert result.parts == ()
        assert result.denoiser_calls == 0


def test_values_that_are_not_finite_are_an_error(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    healthy = worker.exact.network.module.forward

    def explodes(*arguments: object, **named: object) -> object:
        output = healthy(*arguments, **named)
        output.sample[0] = float("inf")
        return output

    monkeypatch.setattr(worker.exact.network.module, "forward", explodes)
    result = worker.run(Task("k", "frechet", schedule, 0, 0, GROUP))
    assert result.error.startswith("EvaluationError: the network returned values that are not finite at call 1")
    assert "not finite" in result.error
    with pytest.raises(EvaluationError):
        worker.render(schedule, 0, 0, 4)


def _with_memory_for(worker: Worker, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """The numbers of images that the worker's network is asked for; more than `most` do not fit."""
    asked: list[int] = []
    network = worker.exact.network
    call = type(network).__call__

    def limited(self: object, x: torch.Tensor, *arguments: object, **named: object) -> object:
        asked.append(len(x))
        if len(x) > most:
            raise error
        return call(network, x, *arguments, **named)

    monkeypatch.setattr(type(network), "__call__", limited)
    return asked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_where_memory_gives_out_fewer_images_at_a_time_are_made(
    schedule: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    worker.batch = 16
    task = Task("k", "images", schedule, 3, 0, 20)
    whole = worker.run(task)
    asked = _with_memory_for(worker, monkeypatch, 5, error)
    halved = worker.run(task)
    assert halved.error == ""
    assert halved.denoiser_calls == whole.denoiser_calls == 40
    assert halved.images is not None
    assert whole.images is not None
    assert np.allclose(halved.images, whole.images, atol=1e-3)
    assert asked[0] == 16
    assert worker.batch == 4
    asked.clear()
    assert worker.run(task).error == ""
    assert max(asked) == 4


def test_where_one_image_does_not_fit_the_machine_is_at_fault(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    usual = worker.batch
    _with_memory_for(worker, monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    result = worker.run(Task("k", "images", schedule, 3, 0, 4))
    assert worker.batch == usual
    assert result.transient
    assert result.error == "OutOfMemoryError: CUDA out of memory"
    assert result.trace.splitlines()[-1] == result.error
    assert "fewstep/tasks/worker.py:" in result.trace
    assert str(Path.home()) not in result.trace


def test_another_failure_is_not_taken_for_a_lack_of_memory(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    asked = _with_memory_for(worker, monkeypatch, 0, RuntimeError("shapes do not fit"))
    assert worker.run(Task("k", "images", schedule, 3, 0, 4)).error == "RuntimeError: shapes do not fit"
    assert asked == [4]


def test_features_are_loaded_when_they_are_asked_for(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise ConfigurationError("no extractor may be loaded")

    monkeypatch.setattr(metric, "make_extractor", none)
    worker = Worker(WorkerSettings(Subject("digits-ddpm")))
    assert worker.run(Task("k", "images", schedule, 0, 0, 2)).error == ""
    assert "no extractor may be loaded" in worker.run(Task("k", "frechet", schedule, 0, 0, GROUP)).error
    with pytest.raises(ConfigurationError):
        worker.prepare("frechet")
    with pytest.raises(ConfigurationError):
        _ = worker.extractor


def test_a_config_is_calibrated_once_and_brings_its_figures(schedule: str, teacher: str, tmp_path: Path) -> None:
    settings = WorkerSettings(Subject("digits-ddpm", calibration=schedule), cache=str(tmp_path))
    config = QuantizationPoint(config=named("w4a8-naive-paper", images=16))
    quantized = joint(parse_point(schedule), config).to_json()
    first, second = Worker(settings), Worker(settings)
    task = Task("k", "distance", quantized, 3, 0, 16, {"teacher": teacher})
    results = [first.run(task), first.run(task), second.run(task)]
    assert [r.error for r in results] == [""] * 3
    # The schedule has 2 calls, the teacher 6; each worker samples the teacher, only one calibrates.
    assert [r.denoiser_calls for r in results] == [(2 + 6 + 2) * 16, 2 * 16, (2 + 6) * 16]
    assert results[0].figures == results[1].figures == results[2].figures
    figures = results[0].figures
    assert 0 < figures["size_bytes"] < 4 * figures["parameters"]
    assert 4 * 8 * figures["multiply_adds_a_call"] < figures["bit_operations_a_call"]
    assert figures["bit_operations_a_call"] < 32 * 32 * figures["multiply_adds_a_call"]
    # In full precision there is nothing to say, and nothing is calibrated.
    exact = first.run(Task("k", "images", schedule, 3, 0, 2))
    assert (exact.figures, exact.denoiser_calls) == ({}, 4)


def test_a_worker_without_a_cache_does_not_quantise(worker: Worker, schedule: str) -> None:
    quantized = joint(parse_point(schedule), QuantizationPoint(config=named("w8a8-naive-paper")))
    task = Task("k", "images", quantized.to_json(), 3, 0, 2)
    result = worker.run(task)
    assert "ConfigurationError" in result.error
    assert result.figures == {}
