"""What a surrogate is worth to a search: best schedules found with each of them, and without, at equal budgets.

    python -m benchmarks.surrogate_gain [--model digits-ddpm] [--nfe 3-6] [--seeds 5] [--budget 640000]

Each seed has its own noise and proposals; a search of the whole front screens by Frechet distance and refines nothing.
`ours` is the geometric mean over seeds and NFE of the best judged distance with the surrogate, `theirs` that of the
same search without one (children taken as they come). `log_ratio` is the mean of their logs' difference, paired by
seed, with its 95% t interval: below 0 the surrogate helps. One line a surrogate. Progress is kept under --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from benchmarks._line import emit
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SURROGATES, SearchSettings, parse_nfes
from fewstep.pipeline.study import Study


def best(root: Path, model: str, nfes: tuple[int, ...], seed: int, budget: int, surrogate: str) -> list[float]:
    """The best judged Frechet distance at each NFE of one search."""
    settings = SearchSettings.build(
        study=f"gain-{surrogate}",
        model=model,
        nfes=nfes,
        seed=seed,
        surrogate=surrogate,
        budget=budget,
        screen="frechet",
        keep=0.2,
        random_trials=8,
        refine=0.0,
        grids=("uniform-t-zero", "quadratic-zero"),
        frechet_images=1000,
        finalist_images=1001,
        finalists=1,
    )
    study = Study(root / f"{model}-{nfes[0]}-{nfes[-1]}-{seed}-{surrogate}", settings)
    study.find(ExecutionSettings(executor="in-process"))
    records = [r for r in study.store.evaluations.records({"study": settings.study}) if r.rung == "frechet"]
    return [min(r.value for r in records if r.nfe == nfe and r.value is not None) for nfe in nfes]


def main() -> None:
    """One line a surrogate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-ddpm")
    parser.add_argument("--nfe", default="3-6")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=640_000)
    parser.add_argument("--surrogates", default=",".join(name for name in SURROGATES if name != "none"))
    parser.add_argument("--out", type=Path, default=Path("runs/surrogate-gain"))
    a = parser.parse_args()
    names = [name.strip() for name in a.surrogates.split(",")]
    found = {
        name: np.log([best(a.out, a.model, parse_nfes(a.nfe), s, a.budget, name) for s in range(a.seeds)]).mean(axis=1)
        for name in ("none", *names)
    }
    for name in names:
        difference = found[name] - found["none"]
        half = student.ppf(0.975, a.seeds - 1) * difference.std(ddof=1) / np.sqrt(a.seeds)
        conditions = {
            "model": a.model,
            "nfe": a.nfe,
            "seeds": a.seeds,
            "budget": a.budget,
            "log_ratio": float(difference.mean()),
            "low": float(difference.mean() - half),
            "high": float(difference.mean() + half),
            "best": np.exp(found[name]).round(4).tolist(),
            "best_without": np.exp(found["none"]).round(4).tolist(),
        }
        ours, theirs = (float(np.exp(found[n].mean())) for n in (name, "none"))
        emit(f"surrogate_gain/{name}", "no surrogate", "Frechet distance", ours, theirs, conditions)


if __name__ == "__main__":
    main()
