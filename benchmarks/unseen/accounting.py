"""What a budget asks for against what its search spent: `python -m benchmarks.unseen.accounting [--only NAME ...]`.

Searches of the 8x8 digits in all kinds of settings. `ours` are the denoiser calls of everything in a study's table but
its report, `theirs` the budget; `conditions` say on which rungs they went, or why the search was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import fewstep
from benchmarks._line import emit
from fewstep.errors import FewstepError
from fewstep.pipeline.study import Study
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.files import find_model
from fewstep.tasks.sampling.grids import preset_on_grid

MODEL = "digits-ddpm"
BUDGET, NFE = 40_000, 4
# What the report costs is none of the budget's.
REPORT = {"report_images": 250, "report_presets": False}
QUANTIZED = {"calibration_iterations": 5, "front": 4}


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings by name, besides MODEL, BUDGET and NFE; `folder` is one for files."""
    noise = find_model(MODEL).noise
    warm, kept = folder / "warm.json", preset_on_grid("dpmpp-2m/uniform-t-zero", noise, NFE)
    warm.write_text(_uneven(noise.lambda_start, noise.lambda_end).to_json())
    ray = {"executor": "ray"}
    return {
        "default": {},
        "several NFEs": {"nfe": (3, 4, 5), "budget": 120_000},
        "unequal NFEs": {"nfe": (3, 8), "budget": 100_000},
        "large": {"budget": 250_000},
        "small": {"budget": 12_000},
        "far too small": {"budget": 800},
        "screen by distance": {"screen": "distance"},
        "screen by frechet": {"screen": "frechet"},
        "no screen": {"screen": "none"},
        "evolution": {"sampler": "evolution", "screen": "none", "refine": 0.0},
        "tpe": {"sampler": "tpe"},
        "cmaes": {"sampler": "cmaes"},
        "random": {"sampler": "random"},
        "not tuned": {"refine": 0.0},
        "tuned to network": {"budget": 280_000, "refine": 0.4, "refine_to": "network"},
        "tuned to pixel": {"budget": 280_000, "refine": 0.4, "refine_to": "pixel"},
        "tuned to reference": {"budget": 480_000, "refine": 0.4, "refine_to": "reference"},
        "tuned to moments": {"refine": 0.4, "refine_to": "moments"},
        "forest": {"surrogate": "forest", "random_trials": 8},
        "encoder": {"surrogate": "encoder", "random_trials": 8},
        "warm start": {"warm_start": (str(warm),)},
        "more decisions": {"decisions": ("skips",)},
        "patience": {"patience": 20_000},
        "1 Ray worker": {**ray, "workers": 1},
        "2 Ray workers": {**ray, "workers": 2},
        "quantization": {"space": "quantization", "base_schedule": kept.to_json(), **QUANTIZED},
        "joint": {"space": "joint", **QUANTIZED},
    }


def _uneven(first: float, last: float) -> SolverSchedule:
    """DDIM on times that no grid has."""
    shares = (0.0, 0.31, 0.55, 0.83, 1.0)
    return fewstep.SolverSchedule.build(
        lambdas=tuple(first + share * (last - first) for share in shares),
        steps=preset_on_grid("ddim/uniform-lambda", find_model(MODEL).noise, NFE).steps,
        name="uneven",
    )


def account(name: str, settings: dict[str, Any], root: Path) -> None:
    """Search, and print one line."""
    asked: dict[str, Any] = {"model": MODEL, "nfe": NFE, "budget": BUDGET, "executor": "in-process"} | settings
    rungs, refused, reported = dict[str, int](), "", 0
    try:
        fewstep.search(out=root, progress=False, **{**REPORT, **asked})
    except FewstepError as error:
        refused = " ".join(str(error).split())
    if (root / "tables" / "studies").is_dir():
        for record in Study.load(root).records():
            if record.of_report:
                reported += record.denoiser_calls
            else:
                rungs[record.rung] = rungs.get(record.rung, 0) + record.denoiser_calls
    spent = sum(rungs.values())
    said = f"refused: {refused}" if refused else ", ".join(f"{rung} {calls:,}" for rung, calls in rungs.items())
    ratio = spent / asked["budget"]
    print(f"{name:20} {asked['budget']:>8,} asked {spent:>8,} spent {ratio:7.3f}  {said}", file=sys.stderr, flush=True)
    conditions = {"model": MODEL, "nfe": asked["nfe"], "rungs": rungs, "report": reported, "refused": refused}
    emit(f"accounting/{name}", "asked", "denoiser calls", spent, asked["budget"], conditions)


def main(arguments: Sequence[str] | None = None) -> None:
    """Every case, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        every = cases(Path(scratch))
        chosen: Iterable[str] = given.only or every
        for number, name in enumerate(chosen):
            account(name, every[name], Path(scratch) / str(number))


if __name__ == "__main__":
    main()
