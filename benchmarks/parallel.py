"""Two Ray actors against one, one thread each: evaluations a second in steady state, and the driver's share.

The same list of evaluations (random schedules of the search space, 500 images, 5 calls) runs on one actor and
on two; the clock starts with the first result, when every actor has loaded its model and is busy. Then a real
search runs on two actors, and its driver's wall time is split into waiting for results and everything else
(proposals, surrogate fits, scoring, durable writes).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random

from benchmarks._line import emit
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.executors.ray import RayExecutor
from fewstep.pipeline.loop import Driver, search
from fewstep.pipeline.proposers.surrogate.encoder import warm_up
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Candidate, Rung
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.storage.store import Store
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import Subject, WorkerSettings

MODEL = "digits-ddpm"
SUBJECT = Subject(MODEL)
NFE = 5
EVALUATIONS = 48
SETTINGS = SearchSettings(model=MODEL, study="parallel", nfes=(5, 6), budget=500_000)


def rate(workers: int) -> float:
    """Evaluations a second between the first result and the last but `workers`."""
    files = find_model(MODEL)
    space = ScheduleSpace(files.noise.lambda_start, files.noise.lambda_end, (NFE,))
    rng = Random(0)
    candidates = [Candidate(i, space.point(space.random(NFE, rng)), "random") for i in range(EVALUATIONS)]
    rung = Rung("frechet", "frechet", 500, 0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        executor = RayExecutor(WorkerSettings(SUBJECT), ExecutionSettings(workers=workers))
        driver = Driver(Evaluator("parallel", SUBJECT, store), executor, store)
        waiting = candidates[::-1]
        times: list[float] = []
        while waiting or executor.in_flight:
            while waiting and executor.in_flight < executor.capacity:
                driver.submit(waiting.pop(), rung)
            if driver.next_record() is not None:
                times.append(time.perf_counter())
        executor.close()
    # The first results of the actors and the last ones, when one of them runs dry, are no steady state.
    first, last = workers, len(times) - workers
    return (last - first) / (times[last] - times[first])


def driver_share() -> float:
    """Share of the wall time of a real search on two actors that the driver spends on itself."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), SETTINGS)
        store = study.store
        warm_up()
        executor = RayExecutor(WorkerSettings(SUBJECT), ExecutionSettings(workers=2))
        driver = Driver(study.evaluator(), executor, store)
        search(study.state(driver), driver)
        executor.close()
    return driver.clock.own_share


def main() -> None:
    """Measure one, two, and the driver."""
    one, two = rate(1), rate(2)
    emit(
        "parallel",
        "one actor",
        "evaluations/s",
        two,
        one,
        {
            "model": MODEL,
            "nfe": NFE,
            "images": 500,
            "evaluations": EVALUATIONS,
            "threads_per_actor": 1,
            "driver_share": round(driver_share(), 4),
            "driver_share_of": f"s3 search, NFE {SETTINGS.nfes}, {SETTINGS.budget} calls, "
            f"{SETTINGS.distance_images} then {SETTINGS.frechet_images} images an evaluation",
        },
    )


if __name__ == "__main__":
    main()
