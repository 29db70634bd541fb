"""What a surrogate is worth to a search: what default searches find with it and without, at equal denoiser calls.

    python -m benchmarks.surrogate_gain [--models digits-ddpm digits-edm] [--nfe 3 4] [--seeds 5] [--calls 10000]

Each search has one NFE, CALLS times that as its budget, its own noise and proposals, and is told nothing else: it
tunes and holds finals as by default; what the surrogate measures is part of its budget. What it finds is judged on
IMAGES that it never saw, by the model's classifier and by the bundled judge. `ours` is the geometric mean of the
distances with the surrogate, `theirs` of those without. `log_ratio` is the mean of their logs' difference, paired by
model, NFE and seed, with its 95% t interval, `judge` the same by the judge, `tuned` and `before` the same on the
search's own images of the best schedule and of the best that was not tuned: below 0 the surrogate helps. Progress is
kept under --out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks._line import emit
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.proposers.base import is_refined
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.records import EvaluationRecord

IMAGES = 2000
FIGURES = ("log_ratio", "judge", "tuned", "before")
GUARD = "frechet-judge"


def found(root: Path, model: str, nfe: int, seed: int, budget: int, surrogate: str) -> dict[str, float]:
    """Logs of the distances of what one search found. What the one without has evaluated is taken."""
    settings = SearchSettings.build(
        study=surrogate,
        model=model,
        nfes=(nfe,),
        seed=seed,
        surrogate=surrogate,
        budget=budget,
        report_images=IMAGES,
        report_presets=False,
    )
    folder = root / f"{model}-{nfe}-{seed}-{budget}"
    without = () if surrogate == "none" else (str(folder / "none"),)
    study = Study(folder / surrogate, settings)
    if not study.reported():
        study.run(ExecutionSettings(executor="in-process", known=without), "benchmarks.surrogate_gain")
    last = study.reported()[-1]
    main = [r for r in study.records() if r.rung == "frechet" and r.value is not None]
    return {
        "log_ratio": _log(last),
        "judge": math.log(last.metrics[GUARD]),
        "tuned": min(map(_log, main)),
        "before": min(_log(r) for r in main if not is_refined(r.origin)),
    }


def _log(record: EvaluationRecord) -> float:
    assert record.value is not None
    return math.log(record.value)


def told(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% t interval."""
    values = np.array(differences)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def main() -> None:
    """One line a surrogate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-ddpm", "digits-edm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[3, 4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--surrogates", nargs="+", default=["forest"])
    parser.add_argument("--out", type=Path, default=Path("runs/surrogate-gain"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(model, nfe, seed) for seed in range(a.seeds) for nfe in a.nfe for model in a.models]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ("none", *a.surrogates)}
    for model, nfe, seed in cases:
        for name, known in results.items():
            known.append(found(a.out, model, nfe, seed, a.calls * nfe, name))
            print(model, nfe, seed, name, known[-1], flush=True)
    for name in a.surrogates:
        conditions: dict[str, object] = {"models": a.models, "nfe": a.nfe, "seeds": a.seeds, "calls": a.calls}
        for figure in FIGURES:
            pairs = zip(results[name], results["none"], strict=True)
            mean, low, high = told([ours[figure] - theirs[figure] for ours, theirs in pairs])
            conditions |= {figure: mean, f"{figure}_low": low, f"{figure}_high": high}
        ours, theirs = (math.exp(np.mean([r["log_ratio"] for r in results[n]])) for n in (name, "none"))
        emit(f"surrogate_gain/{name}", "no surrogate", "Frechet distance", ours, theirs, conditions)


if __name__ == "__main__":
    main()
