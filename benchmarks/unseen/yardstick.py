"""What a search has to beat: `python -m benchmarks.unseen.yardstick ROOT [NAME ...]` prints it for ROOT/NAME.

At each number of calls: every preset on every grid, the same with one step more whose first call is replaced by the
noise itself, and the model's own scheduler. All are judged on LOOK images of report noise, the best FINALISTS of each
kind by either metric on IMAGES, and the best of those stand. They are chosen on the very images that they are reported
on, which favours them: a search is judged on images that chose nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.unseen.data import DATA
from benchmarks.unseen.judging import METRICS, Checkpoint, Groups, judged
from benchmarks.unseen.own import own_schedulers
from fewstep.pipeline.problems.schedules import analytic_first_steps
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.sampling.grids import all_presets

NFES = (4, 5, 6, 8)
LOOK, IMAGES, FINALISTS = 250, 2_500, 8
# Far from the seeds of searches, and from those of their finals and reports.
REPORT_SEED = 77_000_077
PRESET, ANALYTIC = "preset", "analytic"


@dataclass(frozen=True)
class Yardstick:
    """Stock schedules at a number of calls, by name as analytic:ddim/karras, and the model's own schedulers."""

    checkpoint: Checkpoint
    nfe: int
    stock: dict[str, Groups]
    own: dict[str, Groups]

    def best(self, metric: str, kind: str = "") -> str:
        """The name of the best by a metric, of one kind or of both."""
        of_kind = [name for name in self.stock if name.startswith(kind)]
        return min(of_kind, key=lambda name: self.checkpoint.distance(self.stock[name], metric))

    def interval(self, name: str, metric: str) -> Interval:
        """The distance of a stock schedule."""
        return self.checkpoint.interval(self.stock[name], metric)


def stock_schedules(files: ModelFiles, nfe: int) -> dict[str, SolverSchedule]:
    """Every preset on every grid with `nfe` calls, without and with an analytic first call, each schedule once."""
    found = {f"{PRESET}:{name}": schedule for name, schedule in all_presets(files.noise, nfe).items()}
    for name, schedule in analytic_first_steps(files.noise, nfe).items():
        found[f"{ANALYTIC}:{name}"] = schedule
    assert all(schedule.nfe == nfe for schedule in found.values())
    return {name: schedule for name, schedule in {s.hash: (n, s) for n, s in reversed(found.items())}.values()}


def yardstick(checkpoint: Checkpoint, nfe: int) -> Yardstick:
    """Judge what there is at a number of calls, or read it."""
    every = stock_schedules(checkpoint.files, nfe)
    looks = dict(zip(every, judged(every.values(), checkpoint, REPORT_SEED, LOOK), strict=True))
    names: dict[str, None] = {}
    for metric in METRICS:
        for kind in (PRESET, ANALYTIC):
            of_kind = [name for name in every if name.startswith(kind)]
            ranked = sorted(of_kind, key=lambda name: checkpoint.distance(looks[name], metric))
            names |= dict.fromkeys(ranked[:FINALISTS])
    finals = judged([every[name] for name in names], checkpoint, REPORT_SEED, IMAGES)
    own = {sampler.name: sampler for sampler in own_schedulers(checkpoint.files, nfe)}
    walked = judged(own.values(), checkpoint, REPORT_SEED, IMAGES)
    return Yardstick(checkpoint, nfe, dict(zip(names, finals, strict=True)), dict(zip(own, walked, strict=True)))


def said(interval: Interval) -> str:
    """A distance and its interval."""
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def lines(found: Yardstick) -> list[str]:
    """Rows of a Markdown table."""
    rows = []
    for metric in METRICS:
        for kind in (PRESET, ANALYTIC):
            name = found.best(metric, kind)
            rows.append(f"{metric} | best {kind} | {name.partition(':')[2]} | {said(found.interval(name, metric))}")
        for name, groups in found.own.items():
            rows.append(f"{metric} | own scheduler | {name} | {said(found.checkpoint.interval(groups, metric))}")
    return [f"| {found.checkpoint.name} | {found.nfe} | {row} |" for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the checkpoints that are named, line by line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("names", nargs="*", default=list(DATA))
    parser.add_argument("--cache", type=Path, help="what was measured [ROOT/cache]")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| model | NFE | metric | | schedule | distance |", "|---|---|---|---|---|---|", sep="\n", flush=True)
    for name in given.names:
        checkpoint = Checkpoint(given.root / name, given.cache or given.root / "cache")
        for nfe in NFES:
            print(*lines(yardstick(checkpoint, nfe)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
