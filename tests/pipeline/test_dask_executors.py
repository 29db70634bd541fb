"""Workers of Dask, on this machine or as jobs: what the search relies on, dying workers and lost clusters included."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import psutil
import pytest

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.pipeline.executors import dask as on_dask
from fewstep.pipeline.executors import slurm as on_slurm
from fewstep.pipeline.executors.base import EXECUTORS, MAX_TRIES, ExecutionSettings
from fewstep.pipeline.executors.dask import DaskExecutor
from fewstep.pipeline.executors.in_process import InProcessExecutor
from fewstep.pipeline.executors.slurm import SlurmExecutor
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings
from fewstep.tasks.worker import Worker

pytestmark = pytest.mark.slow
# Workers cannot import a module of tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class JobsHere(SlurmExecutor):
    """Jobs of submitit that are processes of this machine, which only this machine hears."""

    kind = "local"
    host = staticmethod(lambda: "127.0.0.1")


@pytest.fixture(scope="module", params=[DaskExecutor, JobsHere])
def executor(request: pytest.FixtureRequest, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    cache = str(tmp_path_factory.mktemp("cache"))
    made = request.param(WorkerSettings(Subject(str(toy)), threads=1, cache=cache), ExecutionSettings(workers=2))
    yield made
    made.close()


def _tasks(toy: Path, count: int) -> list[Task]:
    schedule = preset_on_grid("unipc-2-bh1/karras-zero", find_model(str(toy)).noise, 3).to_json()
    return [Task("frechet", "frechet", schedule, 7, 250 * i, 250) for i in range(count)]


def _bits(results: list[TaskResult]) -> dict[tuple[str, int], Any]:
    assert {r.error for r in results} == {""}
    return {(r.task.key, r.task.start): [p.moments.to_bytes() for p in r.parts if p.moments] for r in results}


def _both_up(executor: DaskExecutor) -> None:
    while executor.workers < 2:
        executor.look()
        time.sleep(0.1)


def test_results_are_those_of_one_process_each_once_though_a_worker_is_killed(executor: Any, toy: Path) -> None:
    here = InProcessExecutor(WorkerSettings(Subject(str(toy)), threads=1))
    _both_up(executor)
    tasks, results = _tasks(toy, 12), list[TaskResult]()
    for task in tasks:
        here.submit(task)
        executor.submit(task)
    assert executor.capacity == 4
    victim = next(iter(executor._client.run(os.getpid).values()))
    for number, _ in enumerate(tasks):
        results.append(executor.next())
        if number == 2:
            os.kill(victim, signal.SIGKILL)
    assert executor.in_flight == executor.ready == 0
    assert Counter(r.task.start for r in results) == Counter(t.start for t in tasks)
    assert _bits(results) == _bits([here.next() for _ in tasks])
    busy = executor.busy()
    assert sum(busy.values()) == pytest.approx(sum(r.seconds for r in results))
    assert set(executor.busy().values()) == {0.0}
    _both_up(executor)
    assert os.getpid() not in executor._client.run(os.getpid).values()


def test_only_this_machine_is_listened_to(executor: Any) -> None:
    me = psutil.Process()
    open_to = {
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert open_to <= {"127.0.0.1", "::1"}
    if isinstance(executor, SlurmExecutor):
        assert executor._client.scheduler.address.startswith("tls://")
        assert executor._folder.stat().st_mode & 0o077 == 0
        with pytest.raises(OSError, match=r"(?i)tls|connect|timed out"):
            distributed.Client(executor._client.scheduler.address.replace("tls", "tcp"), timeout=1)


def _fragile() -> Callable[[WorkerSettings, Task], tuple[str, TaskResult]]:
    """A worker that dies of one task, is failed by its machine at another, raises at a third, and answers the rest."""

    def run(settings: WorkerSettings, task: Task) -> tuple[str, TaskResult]:
        if task.key == "deadly":
            os._exit(1)
        if task.key == "raises":
            raise LookupError("what happened")
        failed = TaskResult(task, error="OutOfMemoryError: there was none", transient=True, trace="where it was")
        return "0", failed if task.key == "fails" else TaskResult(task, seconds=1.0)

    # Made here: Dask sends it whole.
    return run


def test_what_ends_or_fails_every_worker_is_given_up_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    monkeypatch.setattr(on_dask, "run", _fragile())
    monkeypatch.setattr(on_dask, "MAX_TRIES", 2)
    executor = DaskExecutor(WorkerSettings(Subject(str(toy))), ExecutionSettings(workers=1))
    try:
        names = ["first", "deadly", "raises", "fails", "last"]
        for name in names:
            executor.submit(Task(name, "frechet", "", 0, 0, 1))
        results = {r.task.key: r for r in (executor.next() for _ in names)}
        events = executor.events()
    finally:
        executor.close()
    assert results.keys() == set(names)
    assert results["first"].error == results["last"].error == ""
    assert results["deadly"].error == "gave up: the worker died 2 times at this task (KilledWorker)"
    assert (
        results["fails"].error == "gave up: the machine failed 2 times at this task (OutOfMemoryError: there was none)"
    )
    assert "what happened" in results["raises"].error
    quarantined = {event.data["key"]: event.data for event in events if event.kind == "quarantined"}
    assert quarantined.keys() == {"deadly", "raises", "fails"}
    assert quarantined["fails"]["traceback"] == "where it was"
    assert MAX_TRIES == 3


def test_a_cluster_is_joined_left_and_missed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--workers` is what runs at once there; leaving ends none of its workers; without it a search says so."""
    monkeypatch.setattr(on_dask, "CONNECT_SECONDS", 3)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs="CRITICAL"
    )
    with cluster:
        address = cluster.scheduler_address
        settings = ExecutionSettings.build(executor="dask", address=address, workers=1)
        executor = DaskExecutor(WorkerSettings(Subject(str(toy)), threads=1), settings)
        assert executor.capacity == 2
        executor.submit(_tasks(toy, 1)[0])
        assert executor.next().error == ""
        executor.close()
        assert len(cluster.scheduler.workers) == 2
        for model, problem in (("nowhere", "nowhere"), (str(toy / "unet"), "model")):
            with pytest.raises(ConfigurationError, match=problem):
                DaskExecutor(WorkerSettings(Subject(model)), settings)
        lost = DaskExecutor(WorkerSettings(Subject(str(toy)), threads=1), settings)
        lost.submit(_tasks(toy, 1)[0])
    # What was there may be delivered; then it is missed.
    lost.submit(_tasks(toy, 2)[1])
    with pytest.raises(EvaluationError, match=r"cluster is lost.*--resume"):
        list(iter(lost.next, None))
    lost.close()
    with pytest.raises(ConfigurationError, match=f"no scheduler of Dask at {address}"):
        DaskExecutor(WorkerSettings(Subject(str(toy))), settings)


def test_a_job_that_ends_is_handed_in_again(executor: Any) -> None:
    if not isinstance(executor, SlurmExecutor):
        return
    _both_up(executor)
    executor.events()
    job = executor._jobs["job-0"]
    job.cancel()
    end = time.monotonic() + 60
    # The other one may end meanwhile too, where an earlier test has killed its worker.
    while executor._jobs["job-0"] is job and time.monotonic() < end:
        executor.look()
        time.sleep(0.2)
    _both_up(executor)
    assert executor._jobs["job-0"] is not job
    ended = [event.message for event in executor.events() if event.kind == "job_ended"]
    assert sum(message.startswith("job-0") for message in ended) == 1


def _ends_at_once(*_: object) -> None:
    raise OSError("no such node")


def test_jobs_that_never_work_end_the_search(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_slurm, "work", _ends_at_once)
    monkeypatch.setattr(on_slurm, "FAILURES", 1)
    with pytest.raises(ConfigurationError, match=r"jobs end before they work: .*no such node"):
        JobsHere(WorkerSettings(Subject(str(toy)), cache=str(tmp_path)), ExecutionSettings(workers=1))
    assert list(tmp_path.iterdir()) == []


def test_without_slurm_it_is_refused(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ExecutionSettings.build(executor="slurm", workers=2)
    with pytest.raises(ConfigurationError, match="no sbatch"):
        EXECUTORS.load("slurm")(WorkerSettings(Subject(str(toy))), settings)


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"executor": "dask", "timeout": 5}, "timeout"),
        ({"executor": "dask", "device": "cuda", "gpus": 0.5}, "gpus"),
        ({"executor": "slurm", "timeout": 5}, "timeout"),
        ({"executor": "slurm", "address": "tcp://127.0.0.1:1"}, "address"),
        ({"executor": "slurm", "device": "cuda", "gpus": 0.5}, "gpus"),
    ],
)
def test_what_would_not_be_heeded_is_refused(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"--executor ray.*no --{option}"):
        ExecutionSettings.build(**fields)


def test_a_gpu_of_this_machine_is_refused(toy: Path) -> None:
    settings = ExecutionSettings.build(executor="dask", device="cuda")
    with pytest.raises(ConfigurationError, match="dask-cuda"):
        DaskExecutor(replace(WorkerSettings(Subject(str(toy))), device="cuda"), settings)


def test_another_model_takes_a_worker_s_place(toy: Path) -> None:
    ours = WorkerSettings(Subject(str(toy)), threads=1)
    worker = on_dask.set_up(ours)
    assert isinstance(worker, Worker)
    assert on_dask.set_up(ours) is worker
    assert on_dask.set_up(replace(ours, metrics=("frechet",))) is not worker
    assert len(on_dask._workers) == 1
