"""What a process that holds a model can do: sample from fixed noise, and say how good the samples are.

A `Task` is a plain description, a `TaskResult` plain numbers, so both cross process borders. Results
depend on the task alone: batches are cut at absolute image indices, inside groups of fixed size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError, FewstepError
from fewstep.search_spaces.ode import OdeSettings, parse_sampler
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.flow.ode import OdeSampler
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.conditions import NO_LABEL, Conditions
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.judge import load_judge
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import starting_noise

# From noise and image indices to what the network makes.
Make = Callable[[Tensor, range], Tensor]
PIXELS_PER_BATCH = 50_000
GROUP = 250
# Names of a group's sums.
CALLS, RIGHT = "denoiser_calls", "right"


@dataclass(frozen=True)
class WorkerSettings:
    """How to set up a worker: model (zoo name or path), feature extractor, device, CPU threads (0: leave).

    `conditions` are what every image is asked for; `statistics` a file of the model's statistics, or empty.
    `quantized` is the folder of a quantised network that samples in the model's place. `calibration` is the
    schedule (JSON) under which the configs of tasks are calibrated, `cache` the folder that keeps what was.
    `runtime` says whether quantised networks imitate integers in floating point or run in them. `judge` is the
    classifier that says whether images show the labels that were asked for, or empty. `edits` is
    the subject (JSON) of a worker that edits.
    """

    model: str
    features: str = "auto"
    device: str = "cpu"
    threads: int = 0
    conditions: Conditions = field(default_factory=Conditions)
    statistics: str = ""
    quantized: str = ""
    calibration: str = ""
    cache: str = ""
    runtime: Literal["reference", "integer"] = "reference"
    edits: str = ""
    judge: str = ""


@dataclass(frozen=True)
class Task:
    """One unit of work: images start .. start + count - 1 under `seed`, sampled by a schedule or an ODE solver (JSON).

    `moments` returns feature moments and sums of each group of GROUP images (start must be a multiple of it),
    `distance` the paired distances to the teacher's samples from the same noise, `images` the pixels.
    With `quantization` (a config's JSON) the network is quantised that way; the teacher is always sampled in
    full precision. `calibrate` only sees to it that the cache holds that network. `edit` is for workers of
    `tasks.editing.worker`, and measures the edit whose JSON is in the field of that name. `refine` tunes the schedule
    to the teacher by the `plan` (JSON), on noise of the plan's own.
    """

    key: str
    kind: Literal["moments", "distance", "images", "calibrate", "edit", "refine"]
    schedule: str
    seed: int
    start: int
    count: int
    teacher: str = ""
    quantization: str = ""
    edit: str = ""
    plan: str = ""


@dataclass(frozen=True)
class TaskResult:
    """What came of a task. Denoiser calls include the teacher's where it had to be sampled first.

    `sums` are, for each group, its denoiser calls and with a judge how many images show their label.
    `metrics` are figures of the quantised network that the task asked for: `size_bytes` (packed weights),
    `bit_operations_a_call`, `parameters` and `multiply_adds_a_call`, the last three for one image.
    `refined` is a tuned schedule (JSON), `losses` its start's and its own; its backward passes count as two calls each.
    """

    task: Task
    moments: tuple[Moments, ...] = ()
    sums: tuple[dict[str, float], ...] = ()
    pixel: npt.NDArray[np.float64] | None = None
    feature: npt.NDArray[np.float64] | None = None
    images: npt.NDArray[np.float32] | None = None
    denoiser_calls: int = 0
    seconds: float = 0.0
    device: str = "cpu"
    error: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    refined: str = ""
    losses: tuple[float, float] | None = None


def check_device(device: str) -> None:
    """ConfigurationError where this process cannot use `device`."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigurationError(f"unknown device {device!r}: use cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device {device!r} is not there: PyTorch sees no GPU; use --device cpu")


def network_metrics(folder: Path) -> dict[str, float]:
    """Figures of a quantised network on disk, see `TaskResult`; ModelError where the folder holds none.

    The size is that of the weights' file alone: the description beside it also holds how long its making took, and
    so has another length every time.
    """
    from fewstep.tasks.quantization.storage import WEIGHTS, find_quantized

    said = find_quantized(folder).description
    return {
        "size_bytes": float((folder / WEIGHTS).stat().st_size),
        "bit_operations_a_call": float(said["bit_operations"]),
        "parameters": float(sum(layer["parameters"] for layer in said["coverage"])),
        "multiply_adds_a_call": float(sum(layer["multiply_adds"] for layer in said["coverage"])),
    }


class Worker:
    """Holds one model and its feature extractor, and runs tasks one at a time.

    With `features` False it only samples, and needs no extractor's weights.
    """

    def __init__(self, settings: WorkerSettings, features: bool = True) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        check_device(settings.device)
        self.settings = settings
        self.files = find_model(settings.model)
        self.device = settings.device
        self._exact = self.denoiser = Denoiser(self.files, settings.device, settings.conditions)
        self.statistics = (
            ModelStatistics.load_for(Path(settings.statistics), self.files) if settings.statistics else None
        )
        self.decode = load_decoder(self.files, settings.device)
        self._extractor = make_extractor(settings.features, self.files, settings.device) if features else None
        self.shape = self.files.shape
        pixels = self.files.channels * self.files.size**2
        scale = 1 if settings.device == "cpu" else 8
        self.batch = max(8, min(GROUP, scale * PIXELS_PER_BATCH // pixels))
        if settings.quantized:
            self.denoiser = self._quantized(settings.quantized)
        self.judge = load_judge(settings.judge, self.files, settings.device) if settings.judge else None
        if self.judge is not None and settings.conditions.labels == NO_LABEL:
            raise ConfigurationError("a judge needs labels to look for: give --labels balanced or one label")
        self._teacher: dict[tuple[str, int, int, int], tuple[Tensor, npt.NDArray[np.float64]]] = {}
        self._variant: tuple[str, Denoiser] | None = None
        self._variant_metrics: dict[str, float] = {}
        self._past_calls = 0

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor."""
        if self._extractor is None:
            raise ConfigurationError("this worker was set up without features: it can only sample")
        return self._extractor

    def run(self, task: Task) -> TaskResult:
        """Run a task. A candidate that cannot be evaluated comes back as a result with `error` set."""
        begun, calls = time.perf_counter(), self.calls
        try:
            fields = getattr(self, f"_{task.kind}")(task)
        except (FewstepError, ValueError, RuntimeError) as error:
            fields = {"error": f"{type(error).__name__}: {error}"}
        return TaskResult(
            task,
            **fields,
            denoiser_calls=self.calls - calls,
            seconds=time.perf_counter() - begun,
            device=self.device,
            versions={"torch": torch.__version__},
            metrics=self._variant_metrics if task.quantization and "error" not in fields else {},
        )

    @property
    def calls(self) -> int:
        """Denoiser calls of this worker so far, those of trajectories for calibration included."""
        held = {id(d): d.calls for d in (self._exact, self.denoiser)}
        return self._past_calls + sum(held.values()) + (self._variant[1].calls if self._variant else 0)

    def _quantized(self, folder: Path | str) -> Denoiser:
        denoiser = Denoiser(self.files.with_quantized(folder), self.device, self.settings.conditions)
        if self.settings.runtime == "integer":
            from fewstep.tasks.quantization.run_integer import integer_module

            denoiser.network.module = integer_module(folder, denoiser, self.batch)
        return denoiser

    def _denoiser_of(self, task: Task) -> Denoiser:
        """The denoiser that a task asks for; one that is quantised for it is calibrated at its first task."""
        if not task.quantization:
            return self.denoiser
        if self._variant is None or self._variant[0] != task.quantization:
            from fewstep.tasks.quantization.build import Recipe, cached

            if not (self.settings.calibration and self.settings.cache):
                raise ConfigurationError("this worker cannot quantise: it was set up without calibration and cache")
            config = QuantizationConfig.from_json(task.quantization)
            schedule = SolverSchedule.from_json(self.settings.calibration)
            recipe = Recipe(config, schedule, self.settings.conditions, self.statistics)
            folder, spent = cached(self.files, recipe, Path(self.settings.cache), self.device)
            self._past_calls += spent + (self._variant[1].calls if self._variant else 0)
            self._variant = task.quantization, self._quantized(folder)
            self._variant_metrics = network_metrics(folder)
        return self._variant[1]

    def _moments(self, task: Task) -> dict[str, tuple[Any, ...]]:
        groups, sums = [], []
        for start in range(task.start, task.start + task.count, GROUP):
            count = min(GROUP, task.start + task.count - start)
            denoiser = self._denoiser_of(task)
            calls = denoiser.calls
            images = self.sample(task.schedule, task.seed, start, count, denoiser)
            groups.append(Moments.of(self.extractor(images)))
            sums.append({CALLS: float(denoiser.calls - calls)} | self._judged(images, start))
        return {"moments": tuple(groups), "sums": tuple(sums)}

    def _judged(self, images: Tensor, start: int) -> dict[str, float]:
        """How many of the images start, start + 1, ... the judge takes for what they were asked to be."""
        if self.judge is None:
            return {}
        classes = self.files.null_label or 0
        asked = [self.settings.conditions.label(start + i, classes) for i in range(len(images))]
        return {RIGHT: float((self.judge.labels(images) == torch.tensor(asked)).sum())}

    def _distance(self, task: Task) -> dict[str, npt.NDArray[np.float64]]:
        target, target_features = self._teacher_samples(task)
        images = self.sample(task.schedule, task.seed, task.start, task.count, self._denoiser_of(task))
        pixel = (images - target).double().square().mean(dim=(1, 2, 3)).sqrt().cpu().numpy()
        feature = np.linalg.norm(self.extractor(images) - target_features, axis=1)
        return {"pixel": np.asarray(pixel, np.float64), "feature": feature}

    def _refine(self, task: Task) -> dict[str, Any]:
        from fewstep.tasks.refinement.moment_plan import MomentPlan, parse_plan

        start, plan = SolverSchedule.from_json(task.schedule), parse_plan(task.plan)
        if isinstance(plan, MomentPlan):
            from fewstep.tasks.refinement.descend import descend

            descended = descend(start, self._exact, plan, self.statistics)
            return {"refined": descended.schedule.to_json(), "losses": (descended.before, descended.after)}
        from fewstep.tasks.refinement.tune import Refinement

        found = Refinement(start, SolverSchedule.from_json(task.teacher), self._exact, plan, self.statistics).run()
        self._past_calls += 2 * found.cost.backward
        schedule, loss = found.better
        return {"refined": schedule.to_json(), "losses": (found.checks[0].loss, loss)}

    def _images(self, task: Task) -> dict[str, npt.NDArray[np.float32]]:
        images = self.sample(task.schedule, task.seed, task.start, task.count, self._denoiser_of(task))
        return {"images": images.cpu().numpy().astype(np.float32)}

    def _calibrate(self, task: Task) -> dict[str, str]:
        self._denoiser_of(task)
        return {}

    def _teacher_samples(self, task: Task) -> tuple[Tensor, npt.NDArray[np.float64]]:
        key = (task.teacher, task.seed, task.start, task.count)
        if key not in self._teacher:
            images = self.sample(task.teacher, task.seed, task.start, task.count, self._exact)
            self._teacher[key] = (images, self.extractor(images))
        return self._teacher[key]

    @torch.inference_mode()
    def sample(self, sampler: str, seed: int, start: int, count: int, denoiser: Denoiser | None = None) -> Tensor:
        """Samples (count, C, H, W) of a schedule's or an ODE solver's JSON, clipped to [-1, 1].

        Raises EvaluationError where they are not finite.
        """
        parsed, by = parse_sampler(sampler), denoiser or self.denoiser
        make = self._by_ode(parsed, by) if isinstance(parsed, OdeSettings) else self._by_tables(parsed, by)
        batches = []
        for first in range(start, start + count, self.batch):
            size = min(self.batch, start + count - first)
            noise = starting_noise(seed, first, size, self.shape, self.device)
            indices = range(first, first + size)
            batches.append(by.finish(self.decode(make(noise, indices)), indices))
        images = torch.cat(batches)
        if not bool(torch.isfinite(images).all()):
            raise EvaluationError(f"schedule {parsed.hash} made values that are not finite: its steps explode")
        return images.clamp(-1, 1)

    def _by_tables(self, schedule: SolverSchedule, denoiser: Denoiser) -> Make:
        tables = compile_schedule(schedule, self.files.noise, self.files.prediction_type, self.statistics)
        program = Program(tables, self.device)

        def make(noise: Tensor, indices: range) -> Tensor:
            return program(denoiser.on(indices, schedule.guidance, schedule.skips), noise * tables.prior_scale)

        return make

    def _by_ode(self, settings: OdeSettings, denoiser: Denoiser) -> Make:
        sampler = OdeSampler.of(denoiser, settings, settings.guidance)
        return lambda noise, indices: sampler(noise, indices).x
