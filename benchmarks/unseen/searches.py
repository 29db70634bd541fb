"""Searches with default settings on checkpoints that no setting was tuned on, beside what they have to beat.

    python -m benchmarks.unseen.searches ROOT RESULTS.jsonl [--peer evolution|tuning|moments] [--only fashion/*/0 ...]

One search a checkpoint, budget and seed, over all of NFES, through `fewstep.search` with nothing but what a user has to
say. What it found is judged on the noise and by the metrics of the yardstick. A search that was killed goes on, one
whose lines are in RESULTS.jsonl is passed over: several processes may share a selection, a pattern as */50000/* each.
`results.jsonl` beside this file holds what was measured so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fewstep
from benchmarks._line import machine
from benchmarks.unseen.data import DATA
from benchmarks.unseen.judging import METRICS, Checkpoint, judged
from benchmarks.unseen.yardstick import ANALYTIC, IMAGES, NFES, PRESET, REPORT_SEED, Yardstick, yardstick
from fewstep.pipeline.view import StudyView

BUDGETS, SEEDS = (50_000, 150_000, 250_000), (0, 1, 2)
DEFAULT, EVOLUTION, TUNING = "default", "evolution", "tuning"
METHODS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    # The published operators alone: every candidate is judged, none is screened or tuned.
    EVOLUTION: {"sampler": "evolution", "screen": "none", "refine": 0.0},
    # The control: all but a tenth goes into presets, finals and tuning, so that little is searched.
    TUNING: {"refine": 0.65},
}
# `judged` makes the figures, not the study's own report.
REPORT = {"report_images": 250}


@dataclass(frozen=True)
class Job:
    """One search; `budget` is that of one NFE."""

    checkpoint: Checkpoint
    budget: int
    seed: int
    method: str

    @property
    def name(self) -> str:
        """As `--only` selects it."""
        return f"{self.checkpoint.name}/{self.budget}/{self.seed}"

    @property
    def identity(self) -> dict[str, object]:
        """What the lines of this search begin with."""
        return {
            "checkpoint": self.checkpoint.name,
            "budget": self.budget,
            "seed": self.seed,
            "method": self.method,
        }

    def search(self, root: Path) -> StudyView:
        """Search, go on searching, or read what was found."""
        folder, model = self.checkpoint.folder, self.checkpoint
        settings: dict[str, Any] = {**METHODS[self.method], **REPORT}
        if model.files.classes is not None:
            settings["labels"] = model.labels
        return fewstep.search(
            model.model,
            nfe=NFES,
            budget=self.budget * len(NFES),
            out=root / self.method / self.name.replace("/", "-"),
            executor="in-process",
            progress=False,
            features=folder / "features",
            reference=folder / "reference",
            seed=self.seed,
            **settings,
        )


def jobs(root: Path, cached: Path, methods: Sequence[str], only: Sequence[str]) -> Iterator[Job]:
    """The selected searches, the cheap ones first."""
    for budget in BUDGETS:
        for seed in SEEDS:
            for name in DATA:
                for method in methods:
                    job = Job(Checkpoint(root / name, cached), budget, seed, method)
                    if not only or any(fnmatch(job.name, pattern) for pattern in only):
                        yield job


def results(job: Job, study: StudyView, stock: Sequence[Yardstick]) -> Iterator[dict[str, Any]]:
    """One line an NFE: calls asked and spent, what was found, and what it has to beat, by both metrics."""
    trials = study.trials()
    spent = trials[trials["rung"] != "report"]
    totals = {"study_asked": job.budget * len(NFES), "study_spent": int(spent["denoiser_calls"].sum())}
    for known in stock:
        found = study.best(known.nfe)
        (groups,) = judged([found.schedule], job.checkpoint, REPORT_SEED, IMAGES)
        line: dict[str, Any] = {
            **job.identity,
            "nfe": known.nfe,
            "asked": job.budget,
            "spent": int(spent.loc[spent["nfe"] == known.nfe, "denoiser_calls"].sum()),
            **totals,
            "origin": found.origin,
            "schedule": found.schedule.hash,
            "images": IMAGES,
            "report_seed": REPORT_SEED,
        }
        for metric in METRICS:
            value = job.checkpoint.interval(groups, metric)
            best = known.best(metric)
            line[metric] = {
                "found": list(value),
                "best": best,
                **{kind: list(known.interval(known.best(metric, kind), metric)) for kind in (PRESET, ANALYTIC)},
                "ratio": value.value / known.interval(best, metric).value,
                "difference": list(job.checkpoint.difference(groups, known.stock[best], metric)),
                "own": {name: list(job.checkpoint.interval(own, metric)) for name, own in known.own.items()},
            }
        yield {**line, "conditions": machine()}


def known_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that a file of results has, each once."""
    lines = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    names = ("method", "checkpoint", "budget", "seed", "nfe")
    return list({tuple(line[name] for name in names): line for line in lines}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the selected searches, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="the folder of models.py")
    parser.add_argument("results", type=Path, help="file of JSON lines that results are added to")
    parser.add_argument("--peer", choices=[EVOLUTION, TUNING], help="search by this in place of the default")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME/BUDGET/SEED", help="patterns, as fashion/*/0")
    parser.add_argument("--cache", type=Path, help="what was measured [ROOT/cache]")
    parser.add_argument("--searches", type=Path, help="folder of the studies [ROOT/searches]")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)

    @cache
    def stock(folder: Path) -> list[Yardstick]:
        return [yardstick(Checkpoint(folder, cached), nfe) for nfe in NFES]

    cached = given.cache or given.root / "cache"
    for job in jobs(given.root, cached, [given.peer or DEFAULT], given.only):
        done = [line for line in known_lines(given.results) if job.identity.items() <= line.items()]
        if len(done) == len(NFES):
            continue
        print(f"{job.method} {job.name}", flush=True)
        study = job.search(given.searches or given.root / "searches")
        for line in results(job, study, stock(job.checkpoint.folder)):
            with given.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"  NFE {line['nfe']}: {line['origin']}, {line['spent']:,} of {line['asked']:,} calls; "
                + ", ".join(f"{line[m]['ratio']:.2f} of {line[m]['best']} by {m}" for m in METRICS),
                flush=True,
            )


if __name__ == "__main__":
    main()
