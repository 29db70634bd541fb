"""Searches on a cluster of several nodes that join, die and are killed, held against a calm run in one process.

    python -m benchmarks.elastic [--seed 0] [--only PART ...] >> docs/results/elastic.jsonl

`growth`: evaluations a second before and after a second node joins. `storm`: a fixed list of evaluations (digits-ddpm)
on a head without workers and two nodes of one. A third node joins after a quarter of the rows, the first is killed
(kill -9) after half, the driver after three fifths, and is started again; an actor is killed every few seconds. Every
row's key, value and interval is compared, bit for bit. `search`: the same for a whole search, whose rows are counted:
what was once on disk and is not at the end is lost. `autoscaling`: the list on a head that has no workers, with Ray's
fake nodes in the place of those of `ray_cluster.yaml`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler._private import util
from ray.cluster_utils import Cluster
from ray.util import get_node_ip_address

from benchmarks._line import emit
from benchmarks.reliability import EVALUATIONS, HERE, ROOT, Storm, Table, Tally, beside, campaign, psutil, strike, table
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store

KILL_EVERY, PATIENT = 6.0, 30.0
PORT, FAKE_WORKERS, IDLE_MINUTES = 6399, 2, 0.25
BUDGET, SEARCHED_ROWS = 20_000, 28
MANY, RATE_SECONDS = 2000, 45.0


@dataclass
class Watch:
    """Looks at the rows of a folder as they come."""

    root: Path
    seen: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def look(self) -> int:
        """How many rows there are; none that was seen may go."""
        keys = {record.key for record in self.records()}
        self.times += [time.monotonic()] * (len(keys) - len(self.times))
        self.seen |= keys
        return len(keys)

    def records(self) -> list[EvaluationRecord]:
        """All rows."""
        return Store(self.root).evaluations.records()


@contextmanager
def nodes(count: int) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head that holds no workers, and nodes that hold one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(count)]
    finally:
        cluster.shutdown()


def weather(seed: int, rows: Callable[[], int], kills: list[int]) -> Callable[[threading.Event], None]:
    """Kills an actor every few seconds; between two kills a row is finished, or PATIENT seconds pass."""
    rng = random.Random(seed)

    def kill(over: threading.Event) -> None:
        while not over.wait(rng.uniform(0.5, 1.5) * KILL_EVERY):
            if pids := Storm._actors():
                kills.extend(pid for pid in [rng.choice(pids)] if strike(pid))
                before, until = rows(), time.monotonic() + PATIENT
                while rows() == before and time.monotonic() < until and not over.wait(0.5):
                    pass

    return kill


def under_storm(code: list[str], again: list[str], watch: Watch, expected: int, seed: int) -> dict[str, Any]:
    """Run a driver while nodes join and die, actors are killed, and the driver is once; what struck."""
    kills: list[int] = []
    joined = lost = killed = 0.0
    rows = 0
    with nodes(2) as (cluster, made):
        driver = subprocess.Popen([*code, "--address", cluster.address], cwd=ROOT, stdout=subprocess.DEVNULL)
        with beside(weather(seed, lambda: rows, kills)):
            while (code_of := driver.poll()) is None or (killed and code_of == -signal.SIGKILL):
                rows = watch.look()
                if not joined and rows >= expected // 4:
                    cluster.add_node(num_cpus=1)
                    joined = time.monotonic()
                if not lost and rows >= expected // 2:
                    os.kill(made[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)
                    lost = time.monotonic()
                if not killed and rows >= 3 * expected // 5:
                    driver.kill()
                    driver.wait()
                    killed = time.monotonic()
                    driver = subprocess.Popen(
                        [*again, "--address", cluster.address], cwd=ROOT, stdout=subprocess.DEVNULL
                    )
                time.sleep(0.3)
        if driver.returncode:
            raise SystemExit(f"the driver ended with {driver.returncode}")
    watch.look()
    struck = {"nodes_joined": joined, "nodes_killed": lost, "drivers_killed": killed}
    return {"actors_killed": len(kills), **{name: int(at > 0) for name, at in struck.items()}}


def growth(seed: int, scratch: Path, calm: Table) -> tuple[Tally, dict[str, Any]]:
    """Evaluations a second on one node, and on two, once the second's worker is up; one of the list each time."""
    watch = Watch(scratch / "growth")
    code = [sys.executable, "-m", "benchmarks.elastic", "--go-on", str(watch.root), "--seed", str(seed)]
    with nodes(1) as (cluster, _):
        driver = subprocess.Popen(
            [*code, "--address", cluster.address, "--count", str(MANY)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        before = _rate(watch, driver)
        cluster.add_node(num_cpus=1)
        joined = time.monotonic()
        while len(Storm._actors()) < 2 or any("init" in name for name in _titles()):
            time.sleep(0.5)
        up = time.monotonic() - joined
        after = _rate(watch, driver)
        driver.send_signal(signal.SIGINT)
        driver.wait(60)
    watch.look()
    keys = [record.key for record in watch.records()]
    tally = Tally(rows=len(watch.seen), same=len(watch.seen & set(keys)), lost=len(watch.seen - set(keys)))
    tally.twice = Store(watch.root).evaluations.row_count() - len(set(keys))
    rates = {"evaluations_a_second_before": before, "evaluations_a_second_after": after, "risen": after / before}
    return tally, {**{name: round(rate, 3) for name, rate in rates.items()}, "seconds_until_it_worked": round(up, 1)}


def _titles() -> list[str]:
    return [psutil.Process(pid).cmdline()[0] for pid in Storm._actors()]


def _rate(watch: Watch, driver: subprocess.Popen[bytes]) -> float:
    """Evaluations a second over RATE_SECONDS, from a row on."""
    begun = watch.look()
    while watch.look() <= begun and driver.poll() is None:
        time.sleep(0.1)
    first, since = watch.look(), time.monotonic()
    while time.monotonic() - since < RATE_SECONDS or watch.look() == first:
        time.sleep(0.1)
    return (watch.look() - first) / (time.monotonic() - since)


def storm(seed: int, scratch: Path, calm: Table) -> tuple[Tally, dict[str, Any]]:
    """The fixed list."""
    root, tally = scratch / "storm", Tally()
    code = [sys.executable, "-m", "benchmarks.elastic", "--go-on", str(root), "--seed", str(seed)]
    found = under_storm(code, code, Watch(root), EVALUATIONS, seed)
    tally.count(calm, root)
    return tally, found


def searched(seed: int, scratch: Path, calm: Table) -> tuple[Tally, dict[str, Any]]:
    """A whole search: its rows are counted, there is nothing to compare them with."""
    root = scratch / "search"
    command = [
        sys.executable,
        "-m",
        "fewstep.pipeline.cli",
        "search",
        "--out",
        str(root),
        "--executor",
        "ray",
        "--json",
    ]
    what = [
        "--model",
        "digits-ddpm",
        "--nfe",
        "3",
        "--budget",
        str(BUDGET),
        "--seed",
        str(seed),
        "--report-images",
        "500",
    ]
    watch = Watch(root)
    found = under_storm([*command, *what], [*command, "--resume"], watch, SEARCHED_ROWS, seed)
    records = watch.records()
    keys = {record.key for record in records}
    tally = Tally(rows=len(watch.seen | keys), same=len(keys), lost=len(watch.seen - keys))
    tally.twice = Store(root).evaluations.row_count() - len(records)
    tally.failed = sum(record.status != "complete" for record in records)
    tally.events.update(event.kind for event in Store(root).events.records())
    return tally, {**found, "budget": BUDGET, "report_rows": sum(record.rung == "report" for record in records)}


def fake_config(template: Path, address: str) -> dict[str, Any]:
    """`ray_cluster.yaml` with Ray's fake nodes, of one core each, in the place of machines."""
    config: dict[str, Any] = util.prepare_config(yaml.safe_load(template.read_text()))
    config["provider"] = {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
    }
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    for kind in kinds.values():
        kind.update(node_config={}, resources={"CPU": 1}, max_workers=FAKE_WORKERS)
    config["available_node_types"] = {"ray.head.default": {**head, "node_config": {}}, "cpu": kinds["cpu"]}
    config.update(head_node_type="ray.head.default", docker={}, file_mounts={}, idle_timeout_minutes=IDLE_MINUTES)
    util.validate_config(config)
    return config


def autoscaling(seed: int, scratch: Path, calm: Table) -> tuple[Tally, dict[str, Any]]:
    """The list, from a head without workers to as many nodes as there may be, and back."""
    root, tally, address = scratch / "autoscaling", Tally(), f"{get_node_ip_address()}:{PORT}"
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / "cluster.json"
    file.write_text(json.dumps(fake_config(ROOT / "ray_cluster.yaml", address)))
    environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=0", f"--port={PORT}", "--block"]
    start += ["--include-dashboard=false", f"--autoscaling-config={file}"]
    head = subprocess.Popen(
        start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    most, began = 0, time.monotonic()
    try:
        time.sleep(20.0)
        campaign_code = [sys.executable, "-m", "benchmarks.elastic", "--go-on", str(root), "--seed", str(seed)]
        driver = subprocess.Popen([*campaign_code, "--address", address], cwd=ROOT, stdout=subprocess.DEVNULL)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        while driver.poll() is None:
            most = max(most, _workers())
            time.sleep(1.0)
        while _workers() and time.monotonic() - began < 600:
            time.sleep(1.0)
        left = _workers()
        ray.shutdown()
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
    tally.count(calm, root)
    return tally, {"nodes_before": 0, "nodes_at_most": most, "nodes_left_when_idle": left, "exit": driver.returncode}


def _workers() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


PARTS = {"growth": growth, "storm": storm, "search": searched, "autoscaling": autoscaling}


def main() -> None:
    """The parts, one line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=EVALUATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.go_on:
        campaign(given.go_on, given.seed, ExecutionSettings(executor="ray", address=given.address), count=given.count)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows: Table = {}
        if set(given.only) & {"storm", "autoscaling"}:
            campaign(Path(folder) / "calm", given.seed, HERE)
            rows = table(Store(Path(folder) / "calm").evaluations.records())
        for name in given.only:
            began = time.monotonic()
            tally, found = PARTS[name](given.seed, Path(folder) / name, rows)
            counted = {"lost": tally.lost, "twice": tally.twice, "innocent_failed": tally.failed}
            more = {"events": dict(tally.events), "seconds": round(time.monotonic() - began, 1), "seed": given.seed}
            peer = "rows once seen on disk" if name in ("search", "growth") else "a calm run in one process"
            emit(
                f"elastic_{name}", peer, "rows that are the same", tally.same, tally.rows, {**found, **counted, **more}
            )


if __name__ == "__main__":
    main()
