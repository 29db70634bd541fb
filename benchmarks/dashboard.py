"""The live dashboard's pages on a study of a million evaluations: seconds until a page is there.

    python -m benchmarks.dashboard [--rows 1000000] [--goal 3.0] [--root DIR]

Generates the evaluations in files as compaction leaves them, opens the study's page and its trial table in a process
that has read nothing (cold), and again (warm), as a browser would. `ours` is the slower of the cold pages, `theirs` the
goal. On a machine that is busy the seconds of this process's own work say more: `_cpu`. `mib` is the most memory that
the process took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fastapi.testclient import TestClient

from benchmarks._line import emit
from benchmarks.big_tables import NFES, generate
from fewstep.dashboards.web.app import make_app
from fewstep.storage.records import StudyRecord
from fewstep.storage.store import Store

PAGES = {"study": "", "trials": "/trials", "filtered": "/trials?rung=frechet&nfe=4&text=a7&sort=value"}


def prepare(root: Path, rows: int) -> None:
    """The study, where it is not there yet."""
    store = Store(root)
    if store.empty:
        generate(store, rows)
        settings = json.dumps({"space": "schedule", "nfes": NFES, "budget": 6000 * rows})
        store.studies.append([StudyRecord("big", datetime(2026, 1, 1, tzinfo=UTC), settings, "digits-ddpm", "m")])


def opened(root: Path) -> dict[str, float]:
    """Seconds of each page, of a server that has read nothing before each."""
    found = {}
    for name, address in PAGES.items():
        client = TestClient(make_app([root]), base_url="http://127.0.0.1")
        slug = client.app.state.places.find()[0][0].slug  # type: ignore[attr-defined]
        for state in ("cold", "warm"):
            begun, spent = time.perf_counter(), time.process_time()
            answer = client.get(f"/studies/{slug}{address}")
            found[f"{name}_{state}"] = round(time.perf_counter() - begun, 2)
            found[f"{name}_{state}_cpu"] = round(time.process_time() - spent, 2)
            assert answer.status_code == 200, answer.text
    return found


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--goal", type=float, default=3.0)
    parser.add_argument("--root", default="")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = Path(a.root or made)
        prepare(root, a.rows)
        pages = opened(root)
        memory = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
        slowest = max(seconds for name, seconds in pages.items() if name.endswith("cold"))
        rows = Store(root).evaluations.row_count()
        emit("dashboard", "goal", "s a page", slowest, a.goal, {"rows": rows, **pages, "mib": round(memory)})


if __name__ == "__main__":
    main()
