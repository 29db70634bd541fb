"""Time of one denoiser call in 8-bit integers against FP32, and how close the integers are to their reference.

    python -m benchmarks.int8_latency [--threads 1] [--repeats 15] [--quantisation w8a8-naive-paper]

The whole UNet of the bundled `fashion-ddpm` on batches of 1, 16 and 64 images with different labels, one thread
on both sides. `ours` is IntegerNetwork (OpenVINO), `theirs` the faster of PyTorch's eager FP32 and its
`torch.compile` at batch 16; every call of the rounds is interleaved, and medians are compared. The timesteps
change from call to call; their features are remembered, as they are in a sampler's every batch but the first.

Rounding makes the reference itself sensitive to the order of its sums: `reference_to_itself` is how far it moves
with the batch cut into single images, which is what an agreement can be held against. `..._to_fp32` are the errors
of the reference and of the integers against FP32. Exits with 1 where integers take more than 0.6 of FP32's time
at batch 16, or their error to FP32 is more than 1.2 times the reference's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks._line import emit
from fewstep.search_spaces.quantization import named
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.quantization.calibration import Calibration
from fewstep.tasks.quantization.integer import IntegerNetwork
from fewstep.tasks.quantization.network import QuantizedNetwork
from fewstep.tasks.quantization.trajectories import collect
from fewstep.tasks.sampling.grids import preset_on_grid

MODEL, PRESET, STEPS = "fashion-ddpm", "unipc-2-bh2/karras-zero", 8
BATCHES, JUDGED = (1, 16, 64), 16
TIMES = (999.0, 700.5, 400.25, 150.0, 20.0)
OURS, REFERENCE, EAGER, COMPILED = "integers", "fake quantisation", "FP32 eager", "FP32 torch.compile"
MAX_RATIO, MAX_ERROR = 0.6, 1.2

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def diffusers_call(module: Any) -> Call:
    """Output of a network that is called as diffusers' are."""
    return lambda x, time_, labels: module(x, time_, labels).sample


def quantised(name: str) -> tuple[torch.nn.Module, QuantizedNetwork, dict[str, Tensor]]:
    """The network in FP32, the calibrated one, and its calibration data."""
    files = find_model(MODEL)
    denoiser = Denoiser(files, "cpu", Conditions(labels="balanced"))
    data = collect(denoiser, preset_on_grid(PRESET, files.noise, STEPS), named(name))
    exact = copy.deepcopy(denoiser.network.module)
    network = QuantizedNetwork.wrap(denoiser.network.module, named(name), {k: v[:2] for k, v in data.items()})
    Calibration(network, data).run()
    return exact, network, data


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise (B, 1, 28, 28) and labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 28, 28, generator=generator), torch.arange(count) % 10


def rounds(calls: dict[str, Call], batch: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call in interleaved rounds; the first round of each timestep does not count."""
    x, labels = images(batch)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + len(TIMES)):
        told = torch.tensor(TIMES[round_ % len(TIMES)])
        for name, call in calls.items():
            start = time.perf_counter()
            call(x, told, labels)
            if round_ >= len(TIMES):
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def agreement(calls: dict[str, Call]) -> dict[str, float]:
    """Relative errors over 64 images at each of TIMES, all in one."""
    x, labels = images(BATCHES[-1])
    outputs: dict[str, list[Tensor]] = {name: [] for name in (OURS, REFERENCE, EAGER, "single")}
    for value in TIMES:
        told = torch.tensor(value)
        for name in (OURS, REFERENCE, EAGER):
            outputs[name].append(calls[name](x, told, labels))
        single = [calls[REFERENCE](x[i : i + 1], told, labels[i : i + 1]) for i in range(len(x))]
        outputs["single"].append(torch.cat(single))
    whole = {name: torch.cat(values) for name, values in outputs.items()}

    def error(name: str, to: str) -> float:
        return float((whole[name] - whole[to]).norm() / whole[to].norm())

    return {
        "integers_to_reference": error(OURS, REFERENCE),
        "reference_to_itself": error("single", REFERENCE),
        "integers_to_fp32": error(OURS, EAGER),
        "reference_to_fp32": error(REFERENCE, EAGER),
    }


def main() -> int:
    """Time every network, print the line and say whether the claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1, help="threads, for both sides")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; the median counts")
    parser.add_argument("--quantisation", default="w8a8-naive-paper", help="name of the quantisation")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes two minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    exact, network, data = quantised(options.quantisation)
    example = {name: value[100:104] for name, value in data.items()}
    start = time.perf_counter()
    integers = IntegerNetwork.build(network, example, BATCHES, options.threads)
    build_seconds = time.perf_counter() - start
    calls: dict[str, Call] = {
        OURS: diffusers_call(integers),
        REFERENCE: diffusers_call(network.module),
        EAGER: diffusers_call(exact),
    }
    with torch.inference_mode():
        errors = agreement(calls)
        if not options.no_compile:
            calls[COMPILED] = diffusers_call(torch.compile(copy.deepcopy(exact), dynamic=False))
        times = {batch: rounds(calls, batch, options.repeats) for batch in BATCHES}
    ms = {batch: {n: statistics.median(values) for n, values in times[batch].items()} for batch in BATCHES}
    # What a busy machine adds to every call is not in the least of many.
    least = {batch: {n: min(values) for n, values in times[batch].items()} for batch in BATCHES}
    fastest = {batch: min((n for n in calls if n.startswith("FP32")), key=lambda n: ms[batch][n]) for batch in BATCHES}
    ratios = {batch: ms[batch][OURS] / ms[batch][fastest[batch]] for batch in BATCHES}
    emit(
        "int8_latency",
        fastest[JUDGED],
        f"milliseconds a denoiser call, batch {JUDGED}",
        ms[JUDGED][OURS],
        ms[JUDGED][fastest[JUDGED]],
        {
            "model": MODEL,
            "quantisation": options.quantisation,
            "backend": f"openvino {version('openvino')}",
            "ms": ms,
            "least_ms": least,
            "fastest_fp32": fastest,
            "ratios": ratios,
            "relative_errors": errors,
            "build_seconds": build_seconds,
            "threads": options.threads,
            "repeats": options.repeats,
        },
    )
    good = errors["integers_to_fp32"] <= MAX_ERROR * errors["reference_to_fp32"]
    return int(ratios[JUDGED] > MAX_RATIO or not good)


if __name__ == "__main__":
    sys.exit(main())
