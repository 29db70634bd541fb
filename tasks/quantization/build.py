"""From a model and a config to a quantised network on disk, made once and found again by its content."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import DataError
from fewstep.files import read_text, write_text
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.quantization.allocation import REFERENCE, allot_bits, changes_by_layer
from fewstep.tasks.quantization.bits import IMAGES, ROWS
from fewstep.tasks.quantization.calibration import Calibration, Progress
from fewstep.tasks.quantization.coverage import coverage
from fewstep.tasks.quantization.domain import block_domain
from fewstep.tasks.quantization.memory import Forecast, LivePeak, batch_for, forecast
from fewstep.tasks.quantization.network import QuantizedNetwork
from fewstep.tasks.quantization.storage import DESCRIPTION, save_pretrained
from fewstep.tasks.quantization.temporal import block_errors
from fewstep.tasks.quantization.tracing import LayerGraph
from fewstep.tasks.quantization.trajectories import Batch, chosen_steps, collect, recorded
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.noise import starting_noise

EXAMPLE = 2
# Of the model that this process quantised last.
_traces: dict[Hashable, LayerGraph] = {}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a quantised network besides the model."""

    config: QuantizationConfig
    schedule: SolverSchedule
    conditions: Conditions
    statistics: ModelStatistics | None = None

    def data_identity(self, files: ModelFiles) -> str:
        """Names the calibration data: what was sampled, and how."""
        learned = self.statistics.hash if self.statistics and self.schedule.needs_statistics else ""
        return f"{files.hash} {self.schedule.hash} {self.conditions.hash} {learned}".rstrip()

    def key(self, files: ModelFiles) -> str:
        """Content address of the quantised network: 16 hex digits."""
        return hashlib.sha256(f"{self.data_identity(files)}\n{self.config.hash}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cost:
    """What a calibration took: denoiser calls of its trajectories, seconds of all of it."""

    denoiser_calls: int
    seconds: float


def cached(files: ModelFiles, recipe: Recipe, cache: Path, device: str = "cpu") -> tuple[Path, int]:
    """The folder of the quantised network under `cache`, calibrated now where it is not there yet.

    The second value is what that took in denoiser calls. Two processes that calibrate the same config at the same
    time make the same folder twice; the later one stays.
    """
    folder = cache / recipe.key(files)
    if (folder / DESCRIPTION).is_file():
        return folder, 0
    # One place for all: configs that differ in their activations alone share what AdaRound found.
    _, cost = quantize(files, recipe, folder, cache / "calibrations", device)
    return folder, cost.denoiser_calls


def _probed(denoiser: Denoiser, recipe: Recipe) -> tuple[Batch, int, int]:
    """What the network is given for a few images, the bytes that a row of it takes, and how many images those are."""
    files, schedule = denoiser.files, recipe.schedule
    tables = compile_schedule(schedule, files.noise, files.prediction_type, recipe.statistics)
    x = starting_noise(recipe.config.seed, 0, EXAMPLE, files.shape, denoiser.device) * tables.prior_scale
    told = next(told for told, called in zip(tables.times, tables.called, strict=True) if called)
    call = denoiser.on(range(EXAMPLE), schedule.guidance, schedule.skips)
    with torch.no_grad(), recorded(denoiser.network.module) as seen, LivePeak() as live:
        call(x, told)
    return seen[0], live.peak // len(seen[0]["x"]), EXAMPLE


def _wrapped(denoiser: Denoiser, config: QuantizationConfig, example: Batch) -> QuantizedNetwork:
    """The network with its layers quantised. All configs of a model share one trace."""
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in example.items())
    traced = denoiser.files.hash, str(denoiser.device), shapes
    network = QuantizedNetwork.wrap(denoiser.network.module, config, example, _traces.get(traced))
    assert network.graph is not None
    if traced not in _traces:
        _traces.clear()
        _traces[traced] = network.graph
    return network


def _changes(
    denoiser: Denoiser, recipe: Recipe, network: QuantizedNetwork, work: Path | None, batch: int, an_image: int
) -> dict[str, float]:
    """What rounding each layer changes; measured once for a model, a schedule and conditions, whatever the config.

    The network sees `an_image` rows for one image.
    """
    fixed = QuantizationConfig(images=IMAGES)
    key = hashlib.sha256(f"{recipe.data_identity(denoiser.files)}\n{fixed.hash}\n{REFERENCE} {ROWS}".encode())
    path = None if work is None else work / f"changes-{key.hexdigest()[:16]}.json"
    if path is not None and path.is_file():
        return _read_changes(path, network)
    data = collect(denoiser, recipe.schedule, fixed, recipe.statistics)
    found = changes_by_layer(network, data, batch)
    denoiser.calls += (len(found) + 1) * min(ROWS, len(data["x"])) // an_image
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))
    return found


def _read_changes(path: Path, network: QuantizedNetwork) -> dict[str, float]:
    """DataError where the file is not about the network."""
    try:
        found = {str(name): float(value) for name, value in json.loads(read_text(path)).items()}
    except (ValueError, AttributeError, TypeError):
        found = {}
    if not found or not found.keys() <= network.plans.keys():
        raise DataError(f"{path} is damaged: delete it to measure anew")
    return found


def foresee(files: ModelFiles, recipe: Recipe, device: str = "cpu") -> Forecast:
    """The most memory that `quantize` takes, and the disk space meanwhile. Runs the network on a few images."""
    denoiser = Denoiser(files, device, recipe.conditions)
    example, a_row, images = _probed(denoiser, recipe)
    network = _wrapped(denoiser, recipe.config, example)
    used = len(chosen_steps(recipe.schedule.nfe, recipe.config.steps))
    rows = recipe.config.images * used * len(example["x"]) // images
    asked = len(block_domain(files, example, recipe.config.seed)["time"])
    return forecast(network, example, rows, batch_for(a_row), asked)


def quantize(
    files: ModelFiles,
    recipe: Recipe,
    folder: Path,
    work: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[QuantizedNetwork, Cost]:
    """Calibrate and store. What a killed calibration had finished is taken from `work`.

    Raises ModelError for a network that cannot be quantised, EvaluationError where the calibration data explode.
    """
    begun = time.perf_counter()
    denoiser = Denoiser(files, device, recipe.conditions)
    example, a_row, images = _probed(denoiser, recipe)
    batch = batch_for(a_row)
    at_once = max(1, batch * images // len(example["x"]))
    data = collect(denoiser, recipe.schedule, recipe.config, recipe.statistics, at_once)
    calls = denoiser.calls - images
    network = _wrapped(denoiser, recipe.config, example)
    identity = recipe.data_identity(files)
    if recipe.config.allocation == "sensitivity":
        before = denoiser.calls
        allot_bits(network, _changes(denoiser, recipe, network, work, batch, len(example["x"]) // images))
        calls += denoiser.calls - before
        # What is kept of a calibration is of these bits.
        identity += f" {[plan.bits for plan in network.plans.values()]}"
    domain = block_domain(files, data, recipe.config.seed)
    Calibration(network, data, work, identity, progress, domain, batch).run()
    covered = coverage(network, example)
    cost = Cost(calls, time.perf_counter() - begun)
    notes: dict[str, Any] = {
        "schedule": recipe.schedule.model_dump(mode="json"),
        "conditions": recipe.conditions.model_dump(),
        "coverage": [asdict(layer) for layer in covered.layers],
        "bit_operations": covered.bit_operations,
        "temporal": [asdict(error) for error in block_errors(network, domain)],
        "cost": asdict(cost),
        "torch": torch.__version__,
    }
    save_pretrained(network, folder, files.name, files.hash, **notes)
    return network, cost
