"""How faithful quantised networks are, at the schedule that they were calibrated on and at others, over seeds.

    python -m benchmarks.quantization_schedules --out runs/schedules.jsonl [--methods w4a8-tfmq-full,...] [--seeds 3]

Every method is calibrated on a bundled model for each schedule of `--calibrated-on` and each of `--seeds` noises.
Printed is one JSON line for each of these networks, and in the end one for each method and schedule with the mean over
the seeds and its 95% interval (Student's t over the seeds, so that it holds the noise of calibration). Lines that
`--out` holds already are not made again.

* `temporal`: relative error of the temporal features, over all labels, at the times of the network's own schedule
  (`own`), at those of stock schedules, and at all training timesteps (`all`).
* `pixel`, `feature`: root mean square difference of pixels and distance in features to full-precision samples of
  the same noise, by schedule.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._line import machine
from fewstep.search_spaces.quantization import parse_config
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.quantization.build import Recipe, quantize
from fewstep.tasks.quantization.calibration import rounding_key
from fewstep.tasks.quantization.temporal import temporal_errors
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.grids import parse_schedule
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import Subject

SEED, BATCH = 1_000_003, 64
LAST = 999
OWN = "docs/results/schedules/fashion_nfe8.json"
STOCK = ("unipc-2-bh2/quadratic-zero@8", "dpmpp-2m/uniform-lambda-zero@8", "unipc-2-bh2/karras-zero@8")
METHODS = tuple(f"{bits}-{name}-{cover}" for bits in ("w4a8", "w4a32") for cover in ("paper", "full")
                for name in ("tfmq", "qdiffusion"))  # fmt: skip
# Student's t, two-sided 95%, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


@torch.inference_mode()
def samples(denoiser: Denoiser, schedule: SolverSchedule, images: int) -> Tensor:
    """Images (N, C, H, W) in [-1, 1]; their noise is that of no calibration."""
    files = denoiser.files
    program = Program(compile_schedule(schedule, files.noise, files.prediction_type))
    pieces = []
    for first in range(0, images, BATCH):
        count = min(BATCH, images - first)
        x = starting_noise(SEED, first, count, files.shape, "cpu") * program.tables.prior_scale
        pieces.append(program(denoiser.on(range(first, first + count)), x))
    return torch.cat(pieces).clamp(-1, 1)


def times_of(schedule: SolverSchedule, files: ModelFiles) -> list[float]:
    """The times that the network is told."""
    tables = compile_schedule(schedule, files.noise, files.prediction_type)
    return [told for told, called in zip(tables.times, tables.called, strict=True) if called]


class Judge:
    """Full-precision samples and features by schedule, made once."""

    def __init__(self, model: str, images: int) -> None:
        self.files, self.images = find_model(model), images
        self.asked = Conditions(labels="balanced") if self.files.classes else Conditions()
        self.exact = Denoiser(self.files, "cpu", self.asked)
        self.extractor = Setting(Subject(model, conditions=self.asked), self.files).extractor
        self._made: dict[str, tuple[Tensor, Any]] = {}

    def paired(self, denoiser: Denoiser, name: str) -> tuple[float, float]:
        """Root mean square difference of pixels, and the mean distance in features."""
        schedule = parse_schedule(name, self.files.noise)
        if name not in self._made:
            exact = samples(self.exact, schedule, self.images)
            self._made[name] = exact, self.extractor(exact)
        exact, features = self._made[name]
        found = samples(denoiser, schedule, self.images)
        pixel = float((found - exact).square().mean(dim=(1, 2, 3)).sqrt().mean())
        return pixel, float(np.linalg.norm(self.extractor(found) - features, axis=1).mean())

    def temporal(self, network: Any, times: Sequence[float]) -> float:
        """Relative error of the temporal features, all labels in one batch, the mean over times."""
        classes = self.files.classes or 1
        example = {"x": torch.zeros(classes, *self.files.shape), "time": torch.zeros(classes)}
        if self.files.classes:
            example["labels"] = torch.arange(classes)
        rows = temporal_errors(self.exact.network.module, network, times, example)
        return statistics.mean(row.relative_error for row in rows)


def measured(method: str, calibrated_on: str, seed: int, judge: Judge, work: Path) -> dict[str, Any]:
    """One network: its figures at its own schedule and at others."""
    files = judge.files
    config = parse_config(method)
    config = config.model_copy(update={"seed": config.seed + seed})
    schedule = parse_schedule(calibrated_on, files.noise)
    recipe, folder, begun = Recipe(config, schedule, judge.asked), work / f"{time.time_ns()}", time.process_time()
    # Configs that differ in their activations alone share what AdaRound finds: the first of them says what it costs.
    shared = (work / f"rounding-{rounding_key(config, recipe.data_identity(files))}.safetensors").exists()
    network, cost = quantize(files, recipe, folder, work)
    seconds = None if shared else round(time.process_time() - begun, 1)
    denoiser = Denoiser(files.with_quantized(folder), "cpu", judge.asked)
    stock = [told for name in STOCK for told in times_of(parse_schedule(name, files.noise), files)]
    temporal = {
        "own": judge.temporal(network, times_of(schedule, files)),
        "stock": judge.temporal(network, stock),
        "all": judge.temporal(network, [float(t) for t in range(5, LAST, 15)]),
    }
    pairs = {name: judge.paired(denoiser, name) for name in (calibrated_on, *STOCK)}
    return {
        "model": files.name,
        "method": method,
        "calibrated_on": calibrated_on,
        "seed": seed,
        "images": judge.images,
        "temporal": temporal,
        "pixel": {name: pair[0] for name, pair in pairs.items()},
        "feature": {name: pair[1] for name, pair in pairs.items()},
        "cpu_seconds": seconds,
        "denoiser_calls": cost.denoiser_calls,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def flat(line: dict[str, Any]) -> dict[str, float]:
    """What is averaged, by a name of its own; of the stock schedules also their mean over the figure at its own."""
    own = line["calibrated_on"]
    found = {f"temporal {name}": value for name, value in line["temporal"].items()}
    for kind in ("pixel", "feature"):
        stock = [line[kind][name] for name in STOCK]
        found |= {f"{kind} own": line[kind][own], f"{kind} stock": statistics.mean(stock)}
    found["temporal stock/own"] = found["temporal stock"] / max(1e-9, found["temporal own"])
    found["pixel worst/own"] = max(line["pixel"][name] for name in STOCK) / found["pixel own"]
    cost = {} if line["cpu_seconds"] is None else {"cpu_seconds": line["cpu_seconds"]}
    return found | cost | {"bytes": line["bytes"]}


def summaries(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each method and schedule: mean over the seeds, with half the width of its interval."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["calibrated_on"]), []).append(flat(line))
    for (method, schedule), rows in groups.items():
        figures: dict[str, Any] = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            half = spread * STUDENT.get(len(values) - 1, 1.96)
            figures[name] = [float(f"{statistics.mean(values):.4g}"), float(f"{half:.3g}")]
        yield {
            "model": lines[0]["model"],
            "method": method,
            "calibrated_on": schedule,
            "seeds": len(rows),
            "figures": figures,
        }


def main() -> int:
    """Measure what is missing, then print the summaries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="fashion-ddpm", help="a bundled model")
    parser.add_argument("--methods", default=",".join(METHODS), help="configs, separated by commas")
    parser.add_argument("--calibrated-on", default=OWN, help="schedules, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="calibrations of each")
    parser.add_argument("--images", type=int, default=256, help="samples a schedule")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quantization_schedules.jsonl"), help="lines are kept here"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    judge, lines = Judge(options.model, options.images), []
    for seed in range(options.seeds):
        for schedule in options.calibrated_on.split(","):
            for method in options.methods.split(","):
                key = {"model": options.model, "method": method, "calibrated_on": schedule, "seed": seed}
                key["images"] = options.images
                line = next((k for k in known if key.items() <= k.items()), None)
                if line is None:
                    line = measured(method, schedule, seed, judge, options.out.parent / "quantized")
                    with options.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)
                lines.append(line)
    for summary in summaries(lines):
        print(json.dumps(summary), flush=True)
    print(json.dumps({"name": "quantization_schedules", **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
