"""A real MLflow server, with a database and artifacts that go through it: killed while a study is shown, then again.

    python -m benchmarks.tracking_server [--study tests/fixtures/studies/schedule]

Starts `mlflow server` on this machine (SQLite, --serve-artifacts), brings a stored study up to date while the server is
killed with kill -9 after some requests, starts it again and syncs again. `lost` are runs, metrics and artifacts of the
plan that are then missing, `doubled` runs that are there twice; runs are found by their tags, and artifacts are read
back through the server. `ours` are the seconds of a whole sync, `theirs` of one that has nothing left to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from benchmarks._line import emit
from fewstep.errors import TrackingError
from fewstep.storage.store import Store
from fewstep.storage.tracking import sync
from fewstep.storage.tracking_plan import CANDIDATE_TAG, ID_TAG, plan_study

PATIENCE = 300.0


class Server:
    """`mlflow server` in a folder, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination"]
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *places,
            str(self.folder / "artifacts"),
            "--serve-artifacts",
        ]
        quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=quiet,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.5)

    def kill(self) -> None:
        """kill -9 of it and of its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("tests/fixtures/studies/schedule"))
    parser.add_argument("--rungs", default="frechet,report")
    a = parser.parse_args()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(a.study / "tables", folder / "study" / "tables")
        store = Store(folder / "study")
        name, (rung, front_rung) = store.studies.records()[-1].study, a.rungs.split(",")
        page = folder / "page.html"
        page.write_text("<p>page</p>")

        def shown() -> float:
            begun = time.perf_counter()
            sync(store, name, server.uri, {"page.html": page}, rung=rung, timeout=60.0, front_rung=front_rung)
            return time.perf_counter() - begun

        server = Server(folder)
        try:
            server.start()
            killer = threading.Timer(2.0, server.kill)
            killer.start()
            try:
                shown()
                refused = ""
            except TrackingError as error:
                refused = str(error)
            killer.join()
            server.start()
            first, again = shown(), shown()
            lost, doubled = missing(server.uri, store, name, rung, front_rung, folder)
        finally:
            server.kill()
    conditions = {
        "study": a.study.name,
        "killed_after": 2.0,
        "refused": refused[:120],
        "lost": lost,
        "doubled": doubled,
    }
    emit("tracking_server", "a sync with nothing left to do", "s", first, again, conditions)


def missing(uri: str, store: Store, study: str, rung: str, front_rung: str, folder: Path) -> tuple[int, int]:
    """What of the plan the server lacks, and runs that it has twice."""
    from mlflow.tracking import MlflowClient

    client, plan = MlflowClient(uri, uri), plan_study(store, study, rung, front_rung)
    experiment = client.get_experiment_by_name("fewstep").experiment_id
    runs = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{plan.id}'")
    by_candidate = {run.data.tags.get(CANDIDATE_TAG): run for run in runs}
    lost = 0
    for candidate, wanted in [(None, plan.parent), *plan.members.items()]:
        run = by_candidate.get(candidate)
        if run is None:
            lost += 1
            continue
        lost += sum(name not in run.data.metrics for name in {point.metric for point in wanted.points})
        lost += sum(run.data.tags.get(name) != value for name, value in wanted.labels.items())
        for name in wanted.texts:
            place = client.download_artifacts(run.info.run_id, name, str(folder))
            lost += not Path(place).is_file()
    nfe = next(iter(plan.members.values())).labels["nfe"]
    lost += not client.search_runs([experiment], f"tags.nfe = '{nfe}' AND tags.`fewstep.kind` = 'front'")
    return lost, len(runs) - len(by_candidate)


if __name__ == "__main__":
    main()
