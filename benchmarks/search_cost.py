"""Denoiser calls until a search is as good as the published evolution is at its end.

    python -m benchmarks.search_cost [--model digits-ddpm] [--nfe 4] [--seeds 3] [--evaluations 400]

`theirs`: all calls of evolution with the published operators, every candidate judged on --images images, nothing
screened or refined (`to_own_best`: those after which it found nothing better). `ours`: the calls until a search with
screen, surrogate, moves and refinement (passes back counted as two) has a schedule of that Frechet distance or less, on
the same images. Medians over seeds; a search that did not get there counts with all its calls, and `reached` says
how many did; `surrogate_seconds` are what its surrogates took to fit and to ask. Progress is kept under --out: killed,
the same command goes on. --curves writes best value against calls of every search as CSV.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks._line import emit
from fewstep.pipeline.settings import ExecutionSettings, SearchSettings
from fewstep.pipeline.study import Study

Curve = list[tuple[int, float]]


def curve(root: Path, settings: SearchSettings) -> Curve:
    """Run a search to its end (or go on with it); best judged value after so many denoiser calls, where it falls."""
    study = Study(root, settings)
    study.find(ExecutionSettings(executor="in-process"))
    calls, best, found = 0, float("inf"), []
    for record in study.store.evaluations.records({"study": settings.study}):
        if record.rung in ("finals", "report"):
            continue
        calls += record.denoiser_calls
        if record.rung == "frechet" and record.value is not None and record.value < best:
            best = record.value
            found.append((calls, best))
    return found


def spent(root: Path) -> int:
    """Denoiser calls of a search, finals apart."""
    study = Study.load(root)
    records = study.store.evaluations.records({"study": study.settings.study})
    return sum(r.denoiser_calls for r in records if r.rung not in ("finals", "report"))


def surrogate_seconds(root: Path) -> float:
    """Time that a search's surrogates took, up to the last fit."""
    study = Study.load(root)
    events = study.store.events.records({"study": study.settings.study})
    return sum(float(json.loads(e.data_json).get("seconds", 0.0)) for e in events if e.kind == "refit")


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-ddpm")
    parser.add_argument("--labels", default="none")
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.2, help="our budget, of theirs")
    parser.add_argument("--surrogate", default=SearchSettings(model="").surrogate)
    parser.add_argument("--refine", type=float, default=0.4)
    parser.add_argument("--out", type=Path, default=Path("runs/search-cost"))
    parser.add_argument("--curves", type=Path)
    a = parser.parse_args()
    budget = a.evaluations * a.images * a.nfe
    common: dict[str, Any] = {
        "model": a.model,
        "conditions": {"labels": a.labels},
        "nfes": (a.nfe,),
        "frechet_images": a.images,
        "finalist_images": a.images + 1,
        "finalists": 1,
        "report_presets": False,
        "preset_grids": 1,
    }
    kinds: dict[str, dict[str, Any]] = {
        "evolution": {"sampler": "evolution", "screen": "none", "budget": budget, "grids": ("uniform-t-zero",)},
        "fewstep": {
            "sampler": "s3",
            "surrogate": a.surrogate,
            "screen": "frechet",
            "keep": 0.2,
            "random_trials": 8,
            "refine": a.refine,
            "refined_elites": 1,
            "refine_to": "reference",
            "budget": round(budget * a.share),
            "grids": ("uniform-t-zero", "quadratic-zero", "karras-zero"),
        },
    }
    theirs, ours, reached, rows, finals, seconds = [], [], 0, [], [], []
    for seed in range(a.seeds):
        curves: dict[str, Curve] = {}
        for kind, fields in kinds.items():
            root = a.out / f"{a.model}-{a.nfe}-{seed}-{kind}"
            settings = SearchSettings.build(study=f"cost-{kind}", seed=seed, **common, **fields)
            curves[kind] = curve(root, settings)
            rows += [(a.model, a.nfe, seed, kind, calls, value) for calls, value in curves[kind]]
        theirs.append(curves["evolution"][-1][0])
        target = curves["evolution"][-1][1]
        there = [calls for calls, value in curves["fewstep"] if value <= target]
        reached += bool(there)
        root = a.out / f"{a.model}-{a.nfe}-{seed}-fewstep"
        ours.append(there[0] if there else spent(root))
        seconds.append(round(surrogate_seconds(root), 1))
        finals.append((target, curves["fewstep"][-1][1]))
    if a.curves:
        with a.curves.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("model", "nfe", "seed", "search", "calls", "best"), *rows]
            )
    conditions = {
        "model": a.model,
        "nfe": a.nfe,
        "seeds": a.seeds,
        "reached": reached,
        "evaluations_of_evolution": a.evaluations,
        "calls_of_evolution": budget,
        "images": a.images,
        "best_of_evolution": [t for t, _ in finals],
        "best_of_fewstep": [o for _, o in finals],
        "calls_of_fewstep": ours,
        "to_own_best": theirs,
        "surrogate": a.surrogate,
        "surrogate_seconds": seconds,
    }
    # Against all that the published search spends: it does not know that its best is found.
    emit("search_cost", "published evolution", "denoiser calls", statistics.median(ours), budget, conditions)


if __name__ == "__main__":
    main()
