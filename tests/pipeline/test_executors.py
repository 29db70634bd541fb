"""One contract, two executors: what the search may rely on wherever its tasks run, dying workers included."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pandas.testing import assert_frame_equal
from ray.util.dask import ray_dask_get

from fewstep.errors import DataError
from fewstep.pipeline.executors import ray as on_ray_module
from fewstep.pipeline.executors.base import MAX_TRIES, ExecutionSettings, Executor
from fewstep.pipeline.executors.dask_on_ray import dask_scheduler, features_on_cluster
from fewstep.pipeline.executors.in_process import InProcessExecutor
from fewstep.pipeline.executors.pace import Pace
from fewstep.pipeline.executors.ray import RayExecutor
from fewstep.pipeline.executors.ray_pool import Pool
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.queries import front, leaderboard
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.data import open_source
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.reference import measured
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, Task, TaskResult, WorkerSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of this module's own; its address."""
    context = ray.init("local", num_cpus=5, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def on_ray(cluster: str, toy: Path) -> Iterator[RayExecutor]:
    executor = RayExecutor(WorkerSettings(Subject(str(toy)), threads=1), ExecutionSettings(workers=2))
    yield executor
    executor.close()


@pytest.fixture(scope="module", params=["in-process", "ray"])
def executor(request: pytest.FixtureRequest, toy: Path) -> Executor:
    if request.param == "ray":
        ours: Executor = request.getfixturevalue("on_ray")
        return ours
    return InProcessExecutor(WorkerSettings(Subject(str(toy)), threads=1))


def _schedule(name: str, nfe: int) -> str:
    return preset_on_grid(name, find_model("digits-ddpm").noise, nfe).to_json()


def _tasks(count: int) -> list[Task]:
    teacher, schedule = _schedule("ddim/uniform-t-zero", 5), _schedule("unipc-2-bh1/karras-zero", 3)
    moments = [Task("frechet", "frechet", schedule, 7, 250 * i, 250) for i in range(count)]
    return [
        *moments,
        Task("distance", "distance", schedule, 7, 0, 16, {"teacher": teacher}),
        Task("images", "images", schedule, 7, 3, 4),
    ]


def _drain(executor: Executor, tasks: list[Task]) -> dict[tuple[str, int], TaskResult]:
    for task in tasks:
        executor.submit(task)
    results = [executor.next() for _ in tasks]
    assert executor.in_flight == 0
    delivered = Counter((r.task.key, r.task.start) for r in results)
    assert delivered == Counter((t.key, t.start) for t in tasks)
    return {(r.task.key, r.task.start): r for r in results}


def _bits(result: TaskResult) -> tuple[object, ...]:
    moments = tuple((p.start, p.count, *(p.moments.to_bytes() if p.moments else ())) for p in result.parts)
    arrays = [a for p in result.parts for _, a in sorted(p.values.items())]
    arrays += [] if result.images is None else [result.images]
    return moments, tuple(np.asarray(a).tobytes() for a in arrays), result.error


# -- the contract ---------------------------------------------------------------------------------------


def test_every_task_is_delivered_once_and_complete(executor: Executor) -> None:
    assert executor.capacity >= 1
    results = _drain(executor, _tasks(5))
    assert all(r.error == "" and r.seconds > 0 for r in results.values())
    assert results["frechet", 250].denoiser_calls == 3 * 250
    assert [(part.start, part.count) for part in results["frechet", 250].parts] == [(250, 250)]
    assert results["distance", 0].parts
    assert results["images", 3].images is not None
    assert results["images", 3].images.shape == (4, 1, 8, 8)
    assert list(executor.events()) == []


# A batch system's folder, in which Ray's sockets have no place, and a cluster that Ray would find by itself.
ALONE = """
import json, os
import ray
import psutil  # Ray brings it
from pathlib import Path
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.executors.ray_cluster import Need, RayCluster

cluster = RayCluster(Need())
cluster.connect(ExecutionSettings(workers=1), "cpu")
me = psutil.Process()
ours = [me, *me.children(recursive=True)]
sockets = [c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
folder = Path(ray._private.worker._global_node.get_session_dir_path()).parent.parent
said = {
    "address": ray.get_runtime_context().gcs_address,
    "cpus": ray.cluster_resources()["CPU"],
    "sockets": sockets,
    "mode": os.environ["RAY_AUTH_MODE"],
    "folder": [str(folder), folder.stat().st_mode & 0o777],
    "room": cluster.room,
}
cluster.close()
print(json.dumps(said | {"left": folder.exists()}))
"""


def test_a_ray_of_our_own_is_private(cluster: str, tmp_path: Path) -> None:
    """It joins no cluster, listens to this machine alone, keeps its token off the disk, and finds a short folder."""
    home, temporary = tmp_path / "home", tmp_path / ("a_folder_as_batch_systems_make_them_" + 50 * "x")
    for folder in (home, temporary):
        folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_TMPDIR")}
    environment |= {"RAY_ADDRESS": cluster, "HOME": str(home), "TMPDIR": str(temporary)}
    code = [sys.executable, "-P", "-c", ALONE]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["address"] != cluster
    assert (said["cpus"], said["room"]) == (1, 1)
    assert len(said["sockets"]) > 3
    assert {ip.removeprefix("::ffff:") for ip in said["sockets"]} == {"127.0.0.1"}
    assert said["mode"] == "token"
    assert [path for path in home.rglob("*") if "token" in path.name] == []
    assert said["folder"][1] == 0o700
    assert said["left"] is False


def test_a_candidate_that_cannot_be_evaluated_comes_back_with_its_error(executor: Executor) -> None:
    good = find_model("digits-ddpm").noise
    # It starts before the model's noise: reads well, does not compile for this model.
    lambdas = (good.lambda_start - 3.0, -1.0, 0.0, 1.0)
    foreign = preset_on_grid("ddim", good, 3).model_copy(update={"lambdas": lambdas}).to_json()
    bad = Task("foreign", "frechet", foreign, 0, 0, 250)
    unreadable = Task("unreadable", "frechet", "{}", 0, 0, 250)
    results = _drain(executor, [bad, unreadable, *_tasks(1)])
    assert "starts at lambda" in results["foreign", 0].error
    assert "not a valid" in results["unreadable", 0].error
    assert results["foreign", 0].parts == ()
    assert results["frechet", 0].error == ""
    assert all("\n" not in r.error for r in results.values())


def test_both_executors_give_the_same_bits(on_ray: RayExecutor, toy: Path) -> None:
    here = _drain(InProcessExecutor(WorkerSettings(Subject(str(toy)), threads=1)), _tasks(3))
    there = _drain(on_ray, _tasks(3))
    assert {k: _bits(r) for k, r in here.items()} == {k: _bits(r) for k, r in there.items()}


# -- Ray: what else runs there ---------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_questions_to_tables_are_answered_on_the_cluster_as_here(
    tmp_path: Path, make_evaluation: Callable[..., EvaluationRecord]
) -> None:
    store = Store(tmp_path)
    for first in (0, 10, 20):
        store.evaluations.append([make_evaluation(order) for order in range(first, first + 10)])
    scheduler = dask_scheduler()
    assert scheduler is ray_dask_get
    for ask in (partial(leaderboard, store, top=3, each_nfe=True), partial(front, store)):
        here, there = ask(engine="pandas"), ask(engine="dask", scheduler=scheduler)
        assert len(here) >= 3
        assert_frame_equal(here, there)


@pytest.mark.usefixtures("cluster")
def test_moments_of_images_are_the_same_on_the_cluster(toy: Path, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1500, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", levels[..., None])
    place, files, execution = str(tmp_path / "images.npz"), find_model(str(toy)), ExecutionSettings(address="auto")
    source, extractor = open_source(place), make_extractor("auto", files, "cpu")
    here = measured(source, 1, 8, extractor)
    there = measured(source, 1, 8, extractor, None, features_on_cluster(execution, source, place, files, "auto"))
    assert (here.count, here.mean.tobytes(), here.scatter.tobytes()) == (
        there.count,
        there.mean.tobytes(),
        there.scatter.tobytes(),
    )
    begun = features_on_cluster(execution, source, place, files, "auto")
    np.savez(tmp_path / "images.npz", levels[:1000, ..., None])
    with pytest.raises(DataError, match="sees other images"):
        list(begun(range(256)))


# -- Ray: workers that die ------------------------------------------------------------------------------


def _both_up(executor: RayExecutor) -> list[int]:
    """Process ids, once both actors are there."""
    while 0 in executor.pids:
        executor._step()
    return executor.pids


@pytest.mark.parametrize(("how", "kind"), [(signal.SIGKILL, "actor_died"), (signal.SIGSTOP, "actor_hung")])
def test_an_actor_that_is_killed_or_stopped_is_replaced_and_its_tasks_are_redone(
    on_ray: RayExecutor, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, kind: str
) -> None:
    tasks, before = _tasks(10), _both_up(on_ray)
    monkeypatch.setattr(on_ray, "_pace", Pace(4))
    for task in tasks:
        on_ray.submit(task)
    os.kill(before[0], how)
    results = [on_ray.next() for _ in tasks]
    assert Counter((r.task.key, r.task.start) for r in results) == Counter((t.key, t.start) for t in tasks)
    assert {r.error for r in results} == {""}
    assert on_ray.pids[1:] == before[1:]
    assert on_ray.pids[0] != before[0]
    (event,) = on_ray.events()
    assert event.kind == kind
    assert f"pid {before[0]}" in event.message
    assert on_ray.events() == []


@ray.remote(max_restarts=0, max_task_retries=0)
class FragileActor:
    """Dies of one task and answers the others."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def run(self, task: Task) -> TaskResult:
        if task.key == "deadly":
            time.sleep(0.5)  # the answer before is on its way
            faulthandler.dump_traceback()
            os._exit(1)
        if task.key == "odd":
            raise LookupError("first line\nwhat happened")
        return TaskResult(task, seconds=1.0)

    def pid(self) -> int:
        return os.getpid()


def test_a_task_that_kills_every_worker_is_given_up_and_the_others_are_not(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragile: Any = FragileActor
    monkeypatch.setattr(on_ray_module, "MAX_TRIES", 2)  # an actor less to start
    monkeypatch.setattr(Pool, "new_actor", lambda self: fragile.remote(self._given))
    executor = RayExecutor(WorkerSettings(Subject("none")), ExecutionSettings(workers=1))
    try:
        names = ["first", "deadly", "odd", "last"]
        results = _drain(executor, [Task(name, "frechet", "", 0, 0, 1) for name in names])
    finally:
        executor.close()
    assert results["first", 0].error == results["last", 0].error == ""
    assert results["deadly", 0].error == "gave up: the worker died 2 times at this task (ActorDiedError)"
    assert MAX_TRIES == 3
    assert "what happened" in results["odd", 0].error
    events = executor.events()
    # Once beside another task, which says nothing, then alone.
    assert [e.kind for e in events if e.kind != "quarantined"] == ["actor_died"] * 3
    (event,) = [e for e in events if e.kind == "quarantined"]
    assert event.data["key"] == "deadly"
    # What the process said when it ended, and no folder of anybody's.
    assert "in run" in str(event.data["traceback"])
    assert str(Path(__file__).parent) not in str(event.data["traceback"])


# -- Ray: whole searches ---------------------------------------------------------------------------------


def _settings(toy: Path, **changes: object) -> SearchSettings:
    fields: dict[str, object] = {
        "model": str(toy),
        "nfes": (2,),
        "budget": 8_000,
        "screen": "distance",
        "refine": 0.0,
        "preset_images": 16,
        "distance_images": 16,
        "frechet_images": 250,
        "finalist_images": 500,
        "finalists": 2,
        "report_images": 500,
        "teacher": "dpmpp-2m/uniform-t-zero@8",
        "sampler": "evolution",
    }
    return SearchSettings.build(**(fields | changes))


def _search(
    root: Path, settings: SearchSettings, executor: Executor, monkeypatch: pytest.MonkeyPatch, **hooks: Any
) -> Store:
    monkeypatch.setattr("fewstep.pipeline.campaign.make_executor", lambda execution, worker: executor)
    Study(root, settings).run(ExecutionSettings(), "test", **hooks)
    store = Store(root)
    records = store.evaluations.records()
    assert store.evaluations.row_count() == len(records) == len({r.key for r in records})
    assert {r.rung for r in records} == {"presets", "distance", "frechet", "finals", "report"}
    assert {r.status for r in records} == {"complete"}
    return store


def _values(store: Store) -> dict[str, tuple[str | None, ...]]:
    numbers = {r.key: (r.value, r.low, r.high) for r in store.evaluations.records()}
    return {key: tuple(None if v is None else v.hex() for v in values) for key, values in numbers.items()}


def test_two_actors_compute_the_bits_of_one_process_though_one_is_killed(
    on_ray: RayExecutor, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, worker = _settings(toy), WorkerSettings(Subject(str(toy)), threads=1)
    alone = _search(tmp_path / "one", settings, InProcessExecutor(worker), monkeypatch)
    pids, seen = _both_up(on_ray), list[EvaluationRecord]()
    monkeypatch.setattr(on_ray, "close", lambda: None)

    def kill_one(record: EvaluationRecord) -> None:
        seen.append(record)
        if len(seen) == 20:
            os.kill(pids[0], signal.SIGKILL)

    two = _search(tmp_path / "two", settings, on_ray, monkeypatch, on_record=kill_one)
    ones, twos = _values(alone), _values(two)
    both = ones.keys() & twos.keys()
    assert len(both) > 15
    assert {k: ones[k] for k in both} == {k: twos[k] for k in both}
    (died,) = [e for e in two.events.records() if e.kind == "actor_died"]
    assert died.study == settings.study
    assert [e for e in alone.events.records() if e.kind in ("actor_died", "busy")] == []
    told = [json.loads(e.data_json)["seconds"] for e in two.events.records() if e.kind == "busy"]
    assert {name for seconds in told for name in seconds} == {"0", "1"}
    worked = sum(value for seconds in told for value in seconds.values())
    assert worked >= 0.99 * sum(r.seconds for r in two.evaluations.records())


def test_a_killed_driver_on_ray_resumes_without_computing_anything_again(
    cluster: str, toy: Path, tmp_path: Path
) -> None:
    root = tmp_path / "study"
    execution = {"executor": "ray", "address": cluster, "workers": 1}
    jobs = [(str(root), _settings(toy, sampler="random").model_dump(), ["after:distance:12"], execution)]
    script = [sys.executable, "-P", str(Path(__file__).with_name("killed_search.py"))]
    done = subprocess.run(script, input=json.dumps(jobs), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split()) == (0, [str(-signal.SIGKILL), "0"]), done.stderr
    before = {r.key: r for r in Store(f"{root}-before").evaluations.records()}
    store = Store(root)
    after = store.evaluations.records()
    assert len(before) >= 10
    assert not any(r.rung == "report" for r in before.values())
    assert store.evaluations.row_count() == len(after) == len({r.key for r in after}) > len(before)
    assert before.items() <= {r.key: r for r in after}.items()
    assert any(r.rung == "report" for r in after)
