"""A grid of thousands of cells, killed with kill -9 again and again and finished: is anything made twice, or lost?

    python -m benchmarks.grid [--out FOLDER] [--images 32] [--kills 3]

`fewstep grid` runs as its own process on the digits, every stock solver on every grid that ends at sigma = 0. It is
killed when equal parts of the evaluations are in its tables, started again, and left to finish. The line holds the
denoiser calls in the tables against those of the forecast of the whole; `computed_twice` counts evaluations that were
written at two times, `missing` cells without a value.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._line import emit
from fewstep.errors import FewstepError
from fewstep.storage.store import Store

GRID = """
models = "digits-ddpm"
schedules = "*/*-zero"
nfes = "3-8"
seeds = [0, 1, 2, 3]
images = {images}
"""
CLI = (sys.executable, "-P", "-m", "fewstep.pipeline.cli", "grid")
PAUSE = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, kill, finish, count, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the grid [default: a temporary one]")
    parser.add_argument("--images", type=int, default=32, help="images of each cell")
    parser.add_argument("--kills", type=int, default=3, help="how often it is killed")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        root = given.out or Path(scratch) / "out"
        file = Path(scratch) / "digits.toml"
        file.write_text(GRID.format(images=given.images))
        _measure(file, root, given.kills)


def _measure(file: Path, root: Path, kills: int) -> None:
    command = (*CLI, str(file), "--out", str(root), "--json")
    told = json.loads(subprocess.run((*command, "--dry-run"), check=True, capture_output=True, text=True).stdout)
    begun, killed = time.perf_counter(), 0
    for part in range(1, kills + 1):
        killed += _kill_at(command, root, told["evaluations"] * part // (kills + 1))
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ended.stdout)
    seconds = time.perf_counter() - begun
    store = Store(root)
    written = [
        (key, at)
        for part in store.evaluations.directory.list()
        for key, at in zip(*store.evaluations.load(part, ["key", "finished_at"]).to_pydict().values(), strict=True)
    ]
    keys = {key for key, _ in written}
    records = store.evaluations.records()
    conditions = {
        "cells": found["cells"],
        "evaluations": len(keys),
        "left_out": found["left_out"],
        "kills": killed,
        "computed_twice": len(set(written)) - len(keys),
        "missing": found["cells"] - found["complete"],
        "failed": found["failed"],
        "seconds": round(seconds, 1),
        "worker_seconds": round(sum(r.seconds for r in records), 1),
        "best": found["leaderboard"][0],
    }
    calls = sum(r.denoiser_calls for r in records)
    emit("grid", "the forecast of the whole", "denoiser calls", calls, told["calls"], conditions)


def _kill_at(command: Sequence[str], root: Path, rows: int) -> int:
    """Start it, and kill it with its children when so many evaluations are on disk; 1, or 0 where it ended before."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    )
    while process.poll() is None:
        if _rows(root) >= rows:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 1
        time.sleep(PAUSE)
    return 0


def _rows(root: Path) -> int:
    try:
        return Store(root).evaluations.row_count()
    except FewstepError:
        return 0


if __name__ == "__main__":
    main()
