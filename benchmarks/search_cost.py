"""Denoiser calls until a search is as good as the published evolution is at its end.

    python -m benchmarks.search_cost [--model digits-ddpm] [--nfe 4,6,8] [--seeds 3] [--first-seed 0]
        [--evaluations 400]

`theirs` is all calls of evolution with the published operators, every candidate judged on --images images, nothing
screened or refined (`to_own_best`: those after which it found nothing better). `ours` is the calls until a search with
screen, surrogate, moves and refinement (passes back counted as two) has a schedule of that Frechet distance or less,
on the same images. What is chosen from 400 on one set of images is partly luck on these images, so a second line
(`search_cost/fresh`) asks the same of --fresh images that neither search saw. Medians over seeds; a search that did
not get there counts with all its calls, and `reached` says how many did; `surrogate_seconds` are what its surrogates
took to fit and to ask. Progress is kept under --out: killed, the same command goes on. Two lines an NFE. --curves
writes best value against calls of every search as CSV, --plot draws them.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks._line import emit
from fewstep.dashboards.drawings import save_figure
from fewstep.dashboards.lines import ACCENT, MUTED
from fewstep.pipeline.campaign import evaluate_missing
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings, parse_nfes
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import Rung, candidate_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.measured_settings import REPORT_SEED_OFFSET
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.work import Subject

# Denoiser calls, the best value by then, and whose it is.
Curve = list[tuple[int, float, SolverSchedule]]


@dataclass(frozen=True)
class Searched:
    """A search at its end: where its best judged value fell, its denoiser calls, finals apart, its surrogates' time."""

    curve: Curve
    calls: int
    surrogate_seconds: float

    def calls_until(self, reached: Sequence[bool]) -> int:
        """Calls of the first point of the curve that got there; all where none did."""
        return next((calls for (calls, *_), there in zip(self.curve, reached, strict=True) if there), self.calls)


def searched(root: Path, settings: SearchSettings) -> Searched:
    """Run a search to its end, or go on with it."""
    study = Study(root, settings)
    study.find(ExecutionSettings(executor="in-process"))
    calls, best, found = 0, float("inf"), []
    for record in study.store.evaluations.records({"study": settings.study}):
        if record.rung in ("finals", "report"):
            continue
        calls += record.denoiser_calls
        if record.rung == "frechet" and record.value is not None and record.value < best:
            best = record.value
            found.append((calls, best, candidate_of(record).schedule))
    refits = [e for e in study.store.events.records({"study": settings.study}) if e.kind == "refit"]
    return Searched(found, calls, sum(float(json.loads(e.data_json).get("seconds", 0.0)) for e in refits))


def fresh_values(a: argparse.Namespace, nfe: int, seed: int, schedules: Sequence[SolverSchedule]) -> list[float]:
    """Frechet distances on images that no search of this seed saw."""
    subject = Subject(a.model, conditions=Conditions(labels=a.labels))
    rung = Rung("fresh", "frechet", a.fresh, seed + REPORT_SEED_OFFSET)
    work = [(schedule, "cost") for schedule in schedules]
    here = ExecutionSettings(executor="in-process")
    records = evaluate_missing(subject, work, rung, a.out / "fresh" / f"{a.model}-{nfe}-{seed}", here)
    return [float("inf") if r.value is None else r.value for r in records]


COLUMNS = ("model", "nfe", "seed", "search", "calls", "best")
COLOURS = {"evolution": MUTED[0], "fewstep": ACCENT}


def searches(a: argparse.Namespace, nfe: int, seed: int) -> dict[str, tuple[Path, SearchSettings]]:
    """Folder and settings of the published search and of ours."""
    budget = a.evaluations * a.images * nfe
    common: dict[str, Any] = {
        "model": a.model,
        "conditions": {"labels": a.labels},
        "nfes": (nfe,),
        "frechet_images": a.images,
        "finalist_images": a.images + 1,
        "finalists": 1,
        "report_presets": False,
    }
    kinds: dict[str, dict[str, Any]] = {
        "evolution": {
            "sampler": "evolution",
            "screen": "none",
            "budget": budget,
            "refine": 0.0,
            "grids": ("uniform-t-zero",),
        },
        "fewstep": {
            "sampler": "s3",
            "surrogate": a.surrogate,
            "screen": a.screen,
            "keep": a.keep,
            "random_trials": 8,
            "refine": a.refine,
            "refined_elites": a.elites,
            "refine_to": a.refine_to,
            "budget": round(budget * a.share),
            "grids": tuple(a.grids.split(",")),
        },
    }
    return {
        kind: (
            a.out / f"{a.model}-{nfe}-{seed}-{kind}",
            SearchSettings.build(study=f"cost-{kind}", seed=seed, **common, **fields),
        )
        for kind, fields in kinds.items()
    }


def compare(a: argparse.Namespace, nfe: int) -> list[tuple[Any, ...]]:
    """Run both searches of every seed at one NFE and print their two lines; rows of COLUMNS."""
    rows: list[tuple[Any, ...]] = []
    told: dict[str, list[float]] = defaultdict(list)
    reached = reached_fresh = 0
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        both = {kind: searched(root, settings) for kind, (root, settings) in searches(a, nfe, seed).items()}
        rows += [(a.model, nfe, seed, kind, calls, best) for kind, s in both.items() for calls, best, _ in s.curve]
        own, target, theirs = both["evolution"].curve[-1]
        ours = both["fewstep"]
        there = [value <= target for _, value, _ in ours.curve]
        reached += any(there)
        told["ours"].append(ours.calls_until(there))
        goal, *values = fresh_values(a, nfe, seed, [theirs, *(schedule for *_, schedule in ours.curve)])
        there = [value <= goal for value in values]
        reached_fresh += any(there)
        told["fresh"].append(ours.calls_until(there))
        told["theirs_fresh"].append(goal)
        told["ours_fresh"].append(values[-1])
        told["to_own_best"].append(own)
        told["theirs_best"].append(target)
        told["ours_best"].append(ours.curve[-1][1])
        told["seconds"].append(round(ours.surrogate_seconds, 1))
    budget = a.evaluations * a.images * nfe
    conditions = {
        "model": a.model,
        "nfe": nfe,
        "seeds": a.seeds,
        "first_seed": a.first_seed,
        "reached": reached,
        "evaluations_of_evolution": a.evaluations,
        "calls_of_evolution": budget,
        "images": a.images,
        "best_of_evolution": told["theirs_best"],
        "best_of_fewstep": told["ours_best"],
        "calls_of_fewstep": told["ours"],
        "to_own_best": told["to_own_best"],
        "surrogate": a.surrogate,
        "surrogate_seconds": told["seconds"],
    }
    # Against all that the published search spends: it does not know that its best is found.
    emit("search_cost", "published evolution", "denoiser calls", statistics.median(told["ours"]), budget, conditions)
    conditions |= {
        "images": a.fresh,
        "reached": reached_fresh,
        "best_of_evolution": told["theirs_fresh"],
        "best_of_fewstep": told["ours_fresh"],
        "calls_of_fewstep": told["fresh"],
    }
    median = statistics.median(told["fresh"])
    emit("search_cost/fresh", "published evolution", "denoiser calls", median, budget, conditions)
    return rows


def draw(rows: list[tuple[Any, ...]], path: Path) -> Path:
    """Best judged distance against denoiser calls, a panel an NFE, a line a seed."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    nfes = sorted(table["nfe"].unique())
    figure = Figure(figsize=(3.6 * len(nfes), 3.4), layout="constrained")
    panels = figure.subplots(1, len(nfes), squeeze=False)[0]
    for axes, nfe in zip(panels, nfes, strict=True):
        for (search, seed), line in table[table["nfe"] == nfe].groupby(["search", "seed"]):
            label = str(search) if seed == table["seed"].min() else None
            axes.step(line["calls"], line["best"], where="post", color=COLOURS[str(search)], label=label)
        axes.set(xscale="log", yscale="log", title=f"NFE {nfe}", xlabel="denoiser calls of the search")
    panels[0].set_ylabel("best Frechet distance so far")
    panels[0].legend(frameon=False)
    return save_figure(figure, path)


def main() -> None:
    """Two lines an NFE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-ddpm")
    parser.add_argument("--labels", default="none")
    parser.add_argument("--nfe", default="4,6,8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--fresh", type=int, default=4000)
    parser.add_argument("--share", type=float, default=0.09, help="our budget, of theirs")
    parser.add_argument("--surrogate", default="none")
    parser.add_argument("--screen", default="distance")
    parser.add_argument("--keep", type=float, default=0.15)
    parser.add_argument("--refine", type=float, default=0.6)
    parser.add_argument("--grids", default="uniform-t-zero,quadratic-zero,karras-zero", help="where our presets start")
    parser.add_argument("--elites", type=int, default=5)
    parser.add_argument("--refine-to", default="moments")
    parser.add_argument("--out", type=Path, default=Path("runs/search-cost"))
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--plot", type=Path)
    a = parser.parse_args()
    rows = [row for nfe in parse_nfes(a.nfe) for row in compare(a, nfe)]
    if a.curves:
        with a.curves.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    if a.plot:
        draw(rows, a.plot)


if __name__ == "__main__":
    main()
