"""Time of a solver step around a free model: our executor against diffusers' schedulers.

    python -m benchmarks.solver_overhead [--threads 1] [--repeats 21] [--usf-path FOLDER]

Every sampler makes 20 steps on 64 x 3 x 32 x 32 in float32 without gradients; the model returns a tensor
that exists already, so only the solver's own arithmetic is timed. Rounds are interleaved: within a round
each sampler runs once, and the medians over the rounds are compared. `ours` is our DPM-Solver++ 2M, the
counterpart of the peers' second order; `theirs` is the faster of DPMSolverMultistepScheduler (order 2) and
UniPCMultistepScheduler (order 2, bh2). With --usf-path the published USF sampler runs beside them.
Exits with 1 where ours takes more than 0.75 of diffusers' time, 0.35 of USF's or 1.3 of a plain sum's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from benchmarks import published_usf
from benchmarks._line import emit
from fewstep.search_spaces.schedule.presets import SEARCH_PRESETS
from fewstep.tasks.models.from_diffusers import from_diffusers
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import preset_on_grid

SHAPE = (64, 3, 32, 32)
STEPS = 20
COMPARABLE = "dpmpp-2m"
USF = "published USF sampler, order 2"
TERMS = 4
MAX_RATIO, MAX_USF_RATIO, MAX_SUM_RATIO = 0.75, 0.35, 1.3


@dataclass(frozen=True)
class Sampler:
    """One sampler's whole run of STEPS steps; `prepare` is called before each and not timed."""

    run: Callable[[], Tensor]
    prepare: Callable[[], object] = lambda: None


def peer(scheduler: DPMSolverMultistepScheduler | UniPCMultistepScheduler, x: Tensor, eps: Tensor) -> Sampler:
    """The `step` calls of a diffusers scheduler."""

    def run() -> Tensor:
        sample = x
        for t in scheduler.timesteps:
            sample = scheduler.step(eps, t, sample, return_dict=False)[0]
        return sample

    # Clears the scheduler's history too.
    return Sampler(run, lambda: scheduler.set_timesteps(STEPS))


def ours(program: Program, x: Tensor, eps: Tensor) -> Sampler:
    """A compiled program with the model that returns `eps`."""
    return Sampler(lambda: program(lambda _x, _time: eps, x))


def plain_sum(tensors: list[Tensor]) -> Sampler:
    """STEPS linear combinations of as many tensors as a row of the comparable preset has terms."""

    def run() -> Tensor:
        for _ in range(STEPS):
            out = tensors[0] * 0.5
            for tensor in tensors[1:]:
                out.add_(tensor, alpha=0.25)
        return out

    return Sampler(run)


def medians(samplers: dict[str, Sampler], repeats: int) -> dict[str, float]:
    """Median milliseconds a step of each sampler over interleaved rounds; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for round_ in range(repeats + 1):
        for name, sampler in samplers.items():
            sampler.prepare()
            start = time.perf_counter()
            sampler.run()
            if round_:
                times[name].append(1e3 * (time.perf_counter() - start) / STEPS)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Time every sampler, print the line and say whether the claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for both sides")
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds; the median counts")
    parser.add_argument("--usf-path", type=Path, help="folder of the published USF program")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    x, eps, *others = (torch.randn(SHAPE, generator=generator) for _ in range(TERMS))
    peers = {
        "DPMSolverMultistepScheduler order 2": DPMSolverMultistepScheduler(solver_order=2),
        "UniPCMultistepScheduler order 2 bh2": UniPCMultistepScheduler(solver_order=2, solver_type="bh2"),
    }
    noise = from_diffusers(next(iter(peers.values())))
    programs = {name: Program(compile_schedule(preset_on_grid(name, noise, STEPS), noise)) for name in SEARCH_PRESETS}
    samplers = {name: peer(scheduler, x, eps) for name, scheduler in peers.items()}
    samplers |= {name: ours(program, x, eps) for name, program in programs.items()}
    terms = max(len(row) for row in programs[COMPARABLE].rows)
    samplers["plain sum"] = plain_sum([x, eps, *others][:terms])
    if options.usf_path:
        run = published_usf.second_order_sampler(published_usf.load(options.usf_path), x, eps, STEPS)
        samplers[USF] = Sampler(run)

    with torch.inference_mode():
        ms = medians(samplers, options.repeats)
    fastest = min(peers, key=lambda name: ms[name])
    emit(
        "solver_overhead",
        f"diffusers {fastest}",
        "milliseconds a step",
        ms[COMPARABLE],
        ms[fastest],
        {
            "shape": list(SHAPE),
            "dtype": "float32",
            "steps": STEPS,
            "comparable_preset": COMPARABLE,
            "peers_ms": {name: ms[name] for name in peers},
            "presets_ms": {name: ms[name] for name in programs},
            "presets_largest_terms": {n: max(len(row) for row in p.rows) for n, p in programs.items()},
            "plain_sum_ms": ms["plain sum"],
            "plain_sum_terms": terms,
            "plain_sum_ratio": ms[COMPARABLE] / ms["plain sum"],
            "usf_ms": ms.get(USF),
            "usf_ratio": ms[COMPARABLE] / ms[USF] if USF in ms else None,
            "threads": options.threads,
            "repeats": options.repeats,
        },
    )
    limits = {fastest: MAX_RATIO, "plain sum": MAX_SUM_RATIO, USF: MAX_USF_RATIO}
    return int(any(ms[COMPARABLE] > limit * ms[name] for name, limit in limits.items() if name in ms))


if __name__ == "__main__":
    sys.exit(main())
