"""The live dashboard's pages on a study of a million evaluations: seconds until a page is there.

    python -m benchmarks.dashboard [--rows 1000000] [--goal 3.0] [--repeats 3] [--root DIR]

Generates the evaluations in files as compaction leaves them, and opens each page of the study in processes that have
read nothing (cold), and again in the same (warm), as a browser would: medians of --repeats. The study searches
networks with their schedules, so that it has every page that evaluations fill. `ours` is the slowest of the cold pages,
`theirs` the goal. On a machine that is busy the seconds of each process's own work say more: `_cpu`. `mib` is the most
memory that a process took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fastapi.testclient import TestClient

from benchmarks._line import emit
from benchmarks.big_tables import NFES, generate, peak_mib
from fewstep.dashboards.web.app import make_app
from fewstep.dashboards.web.decisions import prepare as prepare_server
from fewstep.storage.records import StudyRecord
from fewstep.storage.store import Store

PAGES = {
    "studies": "/",
    "study": "/studies/{slug}",
    "trials": "/studies/{slug}/trials",
    "filtered": "/studies/{slug}/trials?rung=frechet&nfe=4&text=a7&sort=value",
    "candidates": "/studies/{slug}/schedules",
    "candidate": "/studies/{slug}/candidates/{candidate}",
    "decisions": "/studies/{slug}/decisions",
    "fronts": "/studies/{slug}/fronts",
}


def prepare(root: Path, rows: int) -> None:
    """The study, where it is not there yet."""
    store = Store(root)
    if store.empty:
        generate(store, rows, drawn=True)
        settings = json.dumps({"space": "joint", "nfes": NFES, "budget": 6000 * rows})
        store.studies.append([StudyRecord("big", datetime(2026, 1, 1, tzinfo=UTC), settings, "digits-ddpm", "m")])


def ask(root: Path, page: str) -> dict[str, float]:
    """Seconds of one page of a server that is up and has read nothing, and once more."""
    prepare_server()
    client, found = TestClient(make_app([root]), base_url="http://127.0.0.1"), {}
    table = Store(root).evaluations
    candidate = table.load(table.directory.list()[0], ["candidate"])["candidate"][0].as_py()
    slug = client.app.state.places.find()[0][0].slug  # type: ignore[attr-defined]
    for state in ("cold", "warm"):
        begun, spent = time.perf_counter(), time.process_time()
        answer = client.get(PAGES[page].format(slug=slug, candidate=candidate))
        found[f"{page}_{state}"] = time.perf_counter() - begun
        found[f"{page}_{state}_cpu"] = time.process_time() - spent
        assert answer.status_code == 200, answer.text
    return {**found, "mib": peak_mib()}


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--goal", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", default="")
    parser.add_argument("--ask", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.ask:
        print(json.dumps(ask(Path(a.root), a.ask)))
        return
    with tempfile.TemporaryDirectory() as made:
        root = Path(a.root or made)
        prepare(root, a.rows)
        told: dict[str, list[float]] = {}
        for page in list(PAGES) * a.repeats:
            command = [sys.executable, "-m", "benchmarks.dashboard", "--root", str(root), "--ask", page]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for name, seconds in json.loads(answer.splitlines()[-1]).items():
                told.setdefault(name, []).append(seconds)
        memory = max(told.pop("mib"))
        pages = {name: round(statistics.median(seconds), 2) for name, seconds in told.items()}
        slowest = max(seconds for name, seconds in pages.items() if name.endswith("cold"))
        conditions = {"rows": Store(root).evaluations.row_count(), "repeats": a.repeats, **pages, "mib": round(memory)}
        emit("dashboard", "goal", "s a page", slowest, a.goal, conditions)


if __name__ == "__main__":
    main()
