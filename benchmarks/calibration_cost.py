"""Wall time of a calibration against the published procedure, and the error that each leaves.

    python -m benchmarks.calibration_cost [--calls 20] [--images 32] [--published-iterations 20000]

Four calibrations of the bundled `fashion-ddpm` to W4A8 in one run, for one schedule:

* `published`: TFMQ-DM as its program goes about it. A trajectory of its own for the inputs of each timestep
  (calls + ... + 1 denoiser calls an image), TIAR by 20,000 iterations of Adam at 1e-3, AdaRound block by block.
* `shortcuts`: the same procedure on one pass of trajectories, TIAR on all rows in one batch, 2,000 iterations.
* `ours`: `w4a8-hybrid-full`: one pass, the temporal block as integer least squares, AdaRound elsewhere on batches of 8
  instead of 32, a grid a timestep for every activation.
* `descent`: the default, `w4a8-tfmq-full`: one pass, everything as integer least squares. Fastest, at a higher error.

The paired error is the root mean square difference of sampled images to full precision from the same noise, on images
that no calibration saw. `ratio` is ours / published in seconds. Exits with 1 where that is above 0.5 or the error of
ours is above the published one's.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks._line import emit
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.network import QuantizedNetwork
from fewstep.tasks.quantization.trajectories import collect
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise

MODEL, SOLVER, SEED = "fashion-ddpm", "unipc-2-bh2/uniform-lambda-zero", 1_000_003
MAX_RATIO = 0.5


class _Enough(Exception):  # noqa: N818 - control flow, not an error
    pass


def calls_of_fresh_trajectories(denoiser: Denoiser, schedule: SolverSchedule, images: int) -> int:
    """Run a trajectory anew for every timestep, each up to that timestep; the denoiser calls it took."""
    files, before = denoiser.files, denoiser.calls
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    x = starting_noise(SEED, 0, images, files.shape, "cpu") * tables.prior_scale
    for last in range(1, schedule.nfe + 1):
        on, done = denoiser.on(range(images)), 0

        def call(state: Tensor, told: float, on: Any = on, last: int = last) -> Tensor:
            nonlocal done
            output: Tensor = on(state, told)
            done += 1
            if done == last:
                raise _Enough
            return output

        try:
            with torch.inference_mode():
                Program(tables)(call, x)
        except _Enough:
            continue
    return denoiser.calls - before


def calibrate(config: QuantizationConfig, schedule: SolverSchedule, fresh: bool) -> tuple[Denoiser, dict[str, float]]:
    """The quantised denoiser, seconds by part and denoiser calls."""
    begun = time.perf_counter()
    denoiser = Denoiser(find_model(MODEL), "cpu", Conditions(labels="balanced"))
    calls = calls_of_fresh_trajectories(denoiser, schedule, config.images) if fresh else 0
    free = time.perf_counter()
    data = collect(denoiser, schedule, config)
    # The fresh trajectories stand for this pass, whose data they would have given.
    skipped = time.perf_counter() - free if fresh else 0.0
    calls = calls or denoiser.calls
    collected = time.perf_counter()
    network = QuantizedNetwork.wrap(denoiser.network.module, config, {k: v[:2] for k, v in data.items()})
    Calibration(network, data).run()
    seconds = time.perf_counter() - begun - skipped
    return denoiser, {
        "seconds": seconds,
        "trajectories": collected - begun - skipped,
        "reconstruction": seconds - (collected - begun - skipped),
        "denoiser_calls": float(calls),
    }


@torch.inference_mode()
def sample(denoiser: Denoiser, schedule: SolverSchedule, images: int) -> Tensor:
    """Images (N, C, H, W) from the report's noise, clipped to [-1, 1]."""
    files = denoiser.files
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    pieces = []
    for first in range(0, images, 64):
        count = min(64, images - first)
        x = starting_noise(SEED, first, count, files.shape, "cpu") * tables.prior_scale
        pieces.append(Program(tables)(denoiser.on(range(first, first + count)), x))
    return torch.cat(pieces).clamp(-1, 1)


def main() -> int:
    """Calibrate four times, print the line and say whether the claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20, help="denoiser calls of the schedule: timesteps")
    parser.add_argument("--images", type=int, default=32, help="calibration trajectories")
    parser.add_argument("--published-iterations", type=int, default=20_000, help="of TIAR as published")
    parser.add_argument("--judged", type=int, default=500, help="images of the paired error")
    parser.add_argument("--threads", type=int, default=1, help="threads, for all sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = find_model(MODEL)
    schedule = preset_on_grid(SOLVER, files.noise, options.calls)
    exact = sample(Denoiser(files, "cpu", Conditions(labels="balanced")), schedule, options.judged)
    long = {"tiar_iterations": options.published_iterations, "tiar_rate": 1e-3}
    sides = {
        "ours": (named("w4a8-hybrid-full", images=options.images), False),
        "descent": (named("w4a8-tfmq-full", images=options.images), False),
        "shortcuts": (named("w4a8-published-full", images=options.images), False),
        "published": (named("w4a8-published-full", images=options.images, **long), True),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (config, fresh) in sides.items():
        denoiser, cost = calibrate(copy.deepcopy(config), schedule, fresh)
        images = sample(denoiser, schedule, options.judged)
        error = float((images - exact).square().mean(dim=(1, 2, 3)).sqrt().mean())
        found[name] = {**cost, "paired_error": error}
        print(f"{name}: {cost['seconds']:.0f} s, paired error {error:.4f}", file=sys.stderr)
    ours, theirs = found["ours"], found["published"]
    emit(
        "calibration_cost",
        "TFMQ-DM's published procedure in this harness",
        "seconds of a W4A8 calibration",
        ours["seconds"],
        theirs["seconds"],
        {
            "model": MODEL,
            "schedule": f"{SOLVER}@{options.calls}",
            "images": options.images,
            "judged": options.judged,
            "threads": options.threads,
            "published_iterations": options.published_iterations,
            "adaround_iterations": sides["published"][0].iterations,
            "sides": found,
        },
    )
    return int(ours["seconds"] > MAX_RATIO * theirs["seconds"] or ours["paired_error"] > theirs["paired_error"])


if __name__ == "__main__":
    sys.exit(main())
