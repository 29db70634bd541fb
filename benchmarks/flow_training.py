"""What latents save: in training, encoded once against at every step; in sampling, against a model of pixels.

    python -m benchmarks.flow_training [--model fashion-lfm] [--steps 20] [--rounds 5] [--table FILE ...]

First line: images a second of the training loop of the model's recipe (`ours`: latents cached; `theirs`: each batch
encoded by the same autoencoder), on one thread, rounds interleaved, medians compared. Both loops see the same latents
(`relative_difference`), so they train the same network. What caching costs once is in `encode_once_seconds`.

Second line: seconds of denoiser and decoder for 1,000 images at equal quality, the latent model (`ours`) against the
bundled fashion-ddpm (`theirs`). The target is the worse of the two models' best Frechet distances, so that both reach
it; each model takes its schedule of fewest calls that does, those of least distance among equals. Distances come from
the tables (rows of `fewstep baseline`, `fewstep search` or the table `fashion_flow`, same features, same number of
images), whose presets are built again and whose found schedules are looked for by hash in docs/results/schedules. A
model without a row is measured in the run, on --images images of the report seed, and kept in --out. `targets`
repeats the comparison at laxer targets. Images are conditional (balanced labels) without guidance unless a schedule
has its own.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._line import emit
from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.campaign import evaluate
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.tasks.data import load_dataset
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.models.networks import frozen, load_part
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.training.autoencoder import encode_once
from fewstep.tasks.training.diffusion import train_network
from fewstep.tasks.training.examples import Examples
from fewstep.tasks.training.recipe import TrainingRecipe
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

PIXELS = "fashion-ddpm"
RESULTS = Path("docs/results")
TABLES = (RESULTS / "fashion_presets.csv", RESULTS / "fashion_front.csv", RESULTS / "fashion_flow.csv")
NFES = (3, 4, 5, 6, 8, 10)
MEASURED = ("ddim/uniform-t-zero", "unipc-2-bh2/uniform-t-zero", "unipc-3-bh2/uniform-t-zero")
REPORT_SEED = 1_000_003
TIMED_IMAGES = 1000
BALANCED = Conditions(labels="balanced")


class EncodedEachStep:
    """The data, encoded when they are drawn: the same latents as `Latents` draws, from the same generator."""

    def __init__(self, images: Tensor, vae: Any, source: str) -> None:
        self.images, self.vae, self.source = images, vae, source

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def draw(self, index: Tensor, mirrored: Tensor | None, rng: torch.Generator) -> Tensor:
        """Scaled latents (B, c, h, w)."""
        images = self.images[index]
        if mirrored is not None:
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng)
        return float(self.vae.config.scaling_factor) * (posterior.mean + posterior.std * noise)


def training(files: ModelFiles, steps: int, rounds: int) -> None:
    """The first line."""
    from diffusers import AutoencoderKL

    recipe = TrainingRecipe.model_validate_json((files.root / "recipe.json").read_text())
    recipe = recipe.model_copy(update={"steps": steps})
    data = load_dataset(recipe.dataset)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    vae = load_part(AutoencoderKL, files.root / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    vae = frozen(vae, "cpu")
    begun = time.perf_counter()
    cached = encode_once(vae, images, recipe.flip)
    once = time.perf_counter() - begun
    kinds: dict[str, Examples] = {"cached": cached, "encoding": EncodedEachStep(images, vae, cached.source)}
    index = torch.arange(recipe.batch)
    drawn = [e.draw(index, None, torch.Generator().manual_seed(0)) for e in kinds.values()]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    busy: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, examples in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                start, cpu = time.perf_counter(), time.process_time()
                train_network(recipe, examples, labels, Path(folder), every=steps)
                seconds[kind].append(time.perf_counter() - start)
                busy[kind].append(time.process_time() - cpu)
    rate = {kind: steps * recipe.batch / statistics.median(values) for kind, values in seconds.items()}
    saved = 1 / rate["encoding"] - 1 / rate["cached"]
    emit(
        "flow_training",
        "the same loop that encodes every step",
        "training images a second",
        rate["cached"],
        rate["encoding"],
        {
            "recipe": recipe.name,
            "batch": recipe.batch,
            "steps": steps,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
            # What other programs on the machine take is not in it.
            "ratio_of_processor_time": statistics.median(busy["encoding"]) / statistics.median(busy["cached"]),
            "relative_difference": float((drawn[0] - drawn[1]).norm() / drawn[1].norm()),
            "encode_once_seconds": once,
            "encode_once_images": len(images),
            "even_after_images": once / saved if saved > 0 else None,
        },
    )


@dataclass(frozen=True)
class Known:
    """A schedule of a model with its Frechet distance."""

    schedule: SolverSchedule
    name: str
    distance: float
    metric: str
    images: int


def from_tables(files: ModelFiles, tables: Sequence[Path]) -> list[Known]:
    """The model's rows whose schedule can be built again."""
    stored = [load_schedule(p) for p in sorted((RESULTS / "schedules").glob("*.json"))]
    found = []
    for table in tables:
        if not table.is_file():
            continue
        with table.open() as lines:
            for row in csv.DictReader(line for line in lines if not line.startswith("#")):
                schedule = _again(row, files, stored)
                if schedule is not None and schedule.nfe <= max(NFES):
                    distance, images = float(row["value"]), int(row["images"])
                    found.append(Known(schedule, row["schedule"], distance, row["metric"], images))
    return found


def _again(row: dict[str, str], files: ModelFiles, stored: Sequence[SolverSchedule]) -> SolverSchedule | None:
    """The schedule of a table's row, with its guidance; None for another model's, or one that is not kept."""
    if row["model"] != files.name or row.get("setting", "conditional") != "conditional":
        return None
    name, nfe = row["schedule"], float(row["nfe"])
    same = [s for s in stored if name in (s.hash, s.name) and s.nfe == nfe]
    schedule = same[0] if len({s.hash for s in same}) == 1 else None
    if schedule is None and "/" in name and "@" not in name:
        try:
            schedule = preset_on_grid(name, files.noise, round(nfe))
        except ConfigurationError:
            return None
    if schedule is None or schedule.nfe != nfe:
        return None
    guidance = float(row.get("guidance") or 1.0)
    return schedule if guidance == 1.0 else schedule.model_copy(update={"guidance": guidance})


def evaluations(schedule: SolverSchedule) -> int:
    """How often the network is evaluated for an image."""
    return schedule.nfe * (1 if schedule.guidance in (None, 0.0, 1.0) else 2)


def measured(model: str, files: ModelFiles, presets: Sequence[str], images: int, out: Path) -> list[Known]:
    """Presets evaluated in this run, or read back."""
    schedules = {f"{name}@{n}": preset_on_grid(name, files.noise, n) for name in presets for n in NFES}
    execution = ExecutionSettings(executor="in-process")
    records = evaluate(
        Subject(model, conditions=BALANCED), list(schedules.values()), images, REPORT_SEED, out, execution
    )
    return [
        Known(schedule, name, float(record.value or 0.0), record.features, images)
        for (name, schedule), record in zip(schedules.items(), records, strict=True)
    ]


def cheapest(known: Sequence[Known], target: float) -> Known | None:
    """Of the schedules that reach the target the one of fewest evaluations, then of least distance."""
    good = [k for k in known if k.distance <= target]
    return min(good, key=lambda k: (evaluations(k.schedule), k.distance)) if good else None


def seconds_of(
    runs: dict[str, tuple[Worker, SolverSchedule]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds, and of the processor, for 1,000 decoded images; rounds interleaved, the first does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, (worker, schedule) in runs.items():
            count = TIMED_IMAGES if round_ else worker.batch
            start, cpu = time.perf_counter(), time.process_time()
            worker.render(schedule.to_json(), 0, 0, count)
            if round_:
                times[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - cpu)
    wall, own = ({name: statistics.median(values) for name, values in t.items()} for t in (times, busy))
    return wall, own


@torch.inference_mode()
def decoding(worker: Worker) -> float:
    """Seconds that the decoder alone takes for 1,000 latents."""
    latents = torch.randn(worker.batch, *worker.shape, generator=torch.Generator().manual_seed(0))
    worker.decode(latents)
    start = time.perf_counter()
    for first in range(0, TIMED_IMAGES, worker.batch):
        worker.decode(latents[: min(worker.batch, TIMED_IMAGES - first)])
    return time.perf_counter() - start


def sampling(model: str, options: argparse.Namespace) -> None:
    """The second line."""
    files = {"latent": find_model(model), "pixel": find_model(PIXELS)}
    named = {"latent": model, "pixel": PIXELS}
    known, source = {}, {}
    for kind, f in files.items():
        rows = from_tables(f, options.table)
        source[kind] = "tables" if rows else "measured in this run"
        known[kind] = rows or measured(named[kind], f, options.measure, options.images, options.out)
    if len({(k.metric, k.images) for rows in known.values() for k in rows}) != 1:
        raise ConfigurationError("the two models' distances are of different features or numbers of images")
    strictest = max(min(k.distance for k in rows) for rows in known.values())
    workers = {kind: Worker(WorkerSettings(Subject(named[kind], conditions=BALANCED))) for kind in files}
    targets = []
    for target in (strictest, 1.5 * strictest, 2 * strictest, 4 * strictest):
        picks = {kind: cheapest(rows, target) for kind, rows in known.items()}
        assert all(picks.values())
        chosen = {kind: pick for kind, pick in picks.items() if pick is not None}
        took, busy = seconds_of({kind: (workers[kind], k.schedule) for kind, k in chosen.items()}, options.rounds)
        entry: dict[str, Any] = {"target": target, "ratio": took["latent"] / took["pixel"]}
        entry["ratio_of_processor_time"] = busy["latent"] / busy["pixel"]
        for kind, k in chosen.items():
            entry[kind] = {
                "schedule": k.name,
                "nfe": k.schedule.nfe,
                "guidance": k.schedule.guidance,
                "fid": k.distance,
                "seconds": took[kind],
                "processor_seconds": busy[kind],
            }
        targets.append(entry)
    first = known["pixel"][0]
    emit(
        "flow_sampling",
        f"{PIXELS}, at {first.metric} {strictest:.2f}",
        "seconds of denoiser and decoder for 1,000 images",
        targets[0]["latent"]["seconds"],
        targets[0]["pixel"]["seconds"],
        {
            "model": files["latent"].name,
            "metric": first.metric,
            "images_of_distances": first.images,
            "distances_from": source,
            "best": {kind: min(k.distance for k in rows) for kind, rows in known.items()},
            "decoder_seconds": decoding(workers["latent"]),
            "targets": targets,
            "threads": torch.get_num_threads(),
            "rounds": options.rounds,
        },
    )


def main() -> None:
    """Print both lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="fashion-lfm", help="latent flow model: a bundled one's name or a folder")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps a round")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="threads, for all sides")
    parser.add_argument("--table", type=Path, nargs="*", default=TABLES, help="result tables with Frechet distances")
    parser.add_argument("--measure", nargs="*", default=MEASURED, help="PRESET/GRID of models without a row")
    parser.add_argument("--images", type=int, default=10_000, help="images of a distance that is measured here")
    parser.add_argument("--out", type=Path, default=Path("runs/flow-training"), help="keeps what is measured here")
    parser.add_argument("--only", choices=("training", "sampling"), help="one of the two lines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = find_model(options.model)
    if files.vae_config is None:
        raise SystemExit(f"{options.model} is a model of pixels: give a latent one")
    try:
        if options.only != "sampling":
            training(files, options.steps, options.rounds)
        if options.only != "training":
            sampling(options.model, options)
    except FewstepError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
