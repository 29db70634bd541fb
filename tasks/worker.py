"""A process that holds a model: it renders points to images from fixed noise, and hands them to metrics and jobs.

Results depend on the task alone: batches are cut at absolute image indices, inside groups of fixed size.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.point import Point, as_point, parse_point
from fewstep.tasks.faults import first_line, is_machines, is_memory, told, traced
from fewstep.tasks.jobs import JOBS
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.metric import Setting, make_metric
from fewstep.tasks.models.decoder import load_decoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.load import load_denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.rendering import Changed, renderer, sampling_part
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import CALLS, GROUP, Measured, Part, Task, TaskResult, WorkerSettings

PIXELS_PER_BATCH = 50_000


def check_device(device: str) -> None:
    """ConfigurationError where this process cannot use `device`."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ConfigurationError(f"unknown device {device!r}: use cpu, cuda or cuda:0") from None
    if asked.type == "cuda":
        # Counted, not tried: a driver that hands its work to others must take no memory of a GPU.
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (asked.index or 0) >= there:
            seen = f"{there} GPUs" if there else "no GPU"
            raise ConfigurationError(f"device {device!r} is not there: PyTorch sees {seen}; use --device cpu")
        return
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ConfigurationError(
            f"device {device!r} cannot be used: {first_line(error)}; use cpu, cuda or cuda:0"
        ) from None


def machine_class() -> str:
    """Cores and architecture, without anything that names the machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}"


def _costed(part: Part, first: Part) -> Part:
    """A part with the denoiser calls of the same images' first one, where it counts them."""
    if CALLS not in part.sums or CALLS not in first.sums:
        return part
    return replace(part, sums={**part.sums, CALLS: first.sums[CALLS]})


class Worker:
    """Holds one model, and runs tasks one at a time. Features and judges are loaded when a metric asks for them."""

    def __init__(self, settings: WorkerSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        check_device(settings.device)
        self.settings, self.device, subject = settings, settings.device, settings.subject
        self.files = replace(subject, quantized="").files
        self.exact = self._default = load_denoiser(self.files, self.device, subject.conditions)
        self.statistics = ModelStatistics.load_for(Path(subject.statistics), self.files) if subject.statistics else None
        self.decode = load_decoder(self.files, self.device)
        self.shape = self.exact.shape
        pixels = self.files.channels * self.files.size**2
        scale = 1 if self.device == "cpu" else 8
        self.batch = max(8, min(GROUP, scale * PIXELS_PER_BATCH // pixels))
        if subject.quantized:
            self._default = self.quantized(subject.quantized)
        self.setting = Setting(subject, self.files, self.device)
        self._tools: dict[str, Any] = {}
        self._changed: tuple[str, Changed] | None = None
        self._past_calls = 0
        # Images of the group that several metrics measure, while they do.
        self._held: dict[tuple[object, ...], Tensor] | None = None

    # -- tasks ----------------------------------------------------------------------------------------

    def run(self, task: Task) -> TaskResult:
        """Run a task. Whatever is raised comes back as a result with `error` set; only what ends a process does not."""
        begun, calls = time.perf_counter(), self.calls
        error, transient, trace, measured = "", False, "", Measured()
        try:
            measured = self._measured(task)
        except Exception as problem:
            error, transient, trace = told(problem), is_machines(problem), traced(problem)
        return TaskResult(
            task,
            parts=measured.parts,
            also=measured.also,
            figures=measured.figures,
            images=measured.images,
            point=measured.point,
            denoiser_calls=self.calls - calls if measured.calls is None else measured.calls,
            seconds=time.perf_counter() - begun,
            device=self.device,
            error=error,
            transient=transient,
            trace=trace,
            versions={"torch": torch.__version__, "machine": machine_class()},
        )

    def _measured(self, task: Task) -> Measured:
        tool = self._tool(task.metric)
        if not task.also:
            measured: Measured = tool.measure(self, task)
            return measured
        main: list[Measured] = []
        also: dict[str, list[Part]] = {name: [] for name in task.also}
        for start in range(task.start, task.start + task.count, GROUP):
            group = replace(task, start=start, count=min(GROUP, task.start + task.count - start), also=())
            self._held = {}
            try:
                main.append(tool.measure(self, group))
                for name, found in also.items():
                    others = self._tool(name).measure(self, replace(group, metric=name)).parts
                    found.extend(map(_costed, others, main[-1].parts))
            finally:
                self._held = None
        parts = tuple(part for measured in main for part in measured.parts)
        return replace(main[-1], parts=parts, also={name: tuple(rest) for name, rest in also.items()})

    def warm_up(self) -> None:
        """Make a few images of the model itself on a GPU, whose first calls take long for reasons of their own."""
        if not self.device.startswith("cuda"):
            return
        # What keeps a model from it, its first task says.
        with suppress(Exception):
            point = as_point(preset_on_grid("ddim/uniform-lambda", self.files.noise, 1))
            self._rendered(point, 0, 0, min(self.batch, 8), self.exact)

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor of the subject."""
        return self.setting.extractor

    def prepare(self, *metrics: str) -> None:
        """Load what metrics need, so that a worker that cannot be of use says so at once."""
        for name in metrics:
            self._tool(name).prepare(self)

    def _tool(self, name: str) -> Any:
        if name not in self._tools:
            job = JOBS.load(name) if name in JOBS.own else None
            self._tools[name] = job(self.setting) if job else make_metric(name, self.setting)
        return self._tools[name]

    @property
    def calls(self) -> int:
        """Denoiser calls of this worker so far, whatever they were for."""
        held = {id(d): d.calls for d in (self.exact, self._default)}
        return self._past_calls + sum(held.values()) + (self._changed[1].denoiser.calls if self._changed else 0)

    def spend(self, calls: int) -> None:
        """Count denoiser calls that were made by other hands."""
        self._past_calls += calls

    # -- networks -------------------------------------------------------------------------------------

    def quantized(self, folder: Path | str) -> Denoiser:
        """A quantised network in the model's place, in integers where the subject says so."""
        denoiser = Denoiser(self.files.with_quantized(folder), self.device, self.settings.subject.conditions)
        if self.settings.subject.runtime == "integer":
            from fewstep.tasks.quantization.run_integer import integer_module

            denoiser.network.module = integer_module(folder, denoiser, self.batch)
        return denoiser

    def network(self, point: Point) -> Changed:
        """The network that a point samples with; one that is made for it is kept until another is asked for."""
        changes = [part for part in point.parts if part.changes_network]
        if not changes:
            return Changed(self._default)
        key = "\n".join(part.to_json() for part in changes)
        if self._changed is None or self._changed[0] != key:
            changed = Changed(self._default)
            for part in changes:
                made = renderer(part.kind)(self).denoiser(part, changed.denoiser)
                changed = Changed(made.denoiser, {**changed.figures, **made.figures})
            if self._changed is not None:
                self._past_calls += self._changed[1].denoiser.calls
            if changed.denoiser in (self.exact, self._default):
                return changed
            self._changed = key, changed
        return self._changed[1]

    # -- images ---------------------------------------------------------------------------------------

    def render(self, point: Point | str, seed: int, start: int, count: int, denoiser: Denoiser | None = None) -> Tensor:
        """Images (count, C, H, W) of a point or its JSON, clipped to [-1, 1]; by a denoiser instead of the point's own.

        Raises EvaluationError where they are not finite.
        """
        parsed = parse_point(point) if isinstance(point, str) else point
        denoiser = denoiser or self.network(parsed).denoiser
        if self._held is None:
            return self._rendered(parsed, seed, start, count, denoiser)
        key = (parsed.hash, seed, start, count, id(denoiser))
        if key not in self._held:
            self._held[key] = self._rendered(parsed, seed, start, count, denoiser)
        return self._held[key]

    def _take_less(self, error: Exception, count: int) -> None:
        """Half as many images at a time from now on, since memory gave out at `count`."""
        self.batch = count // 2
        # The frames of the error hold on to memory, and torch to what it freed.
        traceback.clear_frames(error.__traceback__)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _rendered(self, point: Point, seed: int, start: int, count: int, denoiser: Denoiser) -> Tensor:
        part = sampling_part(point)
        make = renderer(part.kind)(self).make(part, denoiser)
        batches: list[Tensor] = []
        first, end, usual = start, start + count, self.batch
        while first < end:
            indices = range(first, min(first + self.batch, end))
            calls = denoiser.calls
            try:
                noise = starting_noise(seed, first, len(indices), self.shape, self.device)
                batches.append(denoiser.finish(self.decode(make(noise, indices)), indices))
            except Exception as error:
                if len(indices) == 1 or not is_memory(error):
                    # Whatever it is that takes the memory, it is not the number of images.
                    self.batch = usual
                    raise
                # Calls that came to nothing are not the candidate's.
                denoiser.calls = calls
                self._take_less(error, len(indices))
            else:
                first = indices.stop
        images = torch.cat(batches)
        if not bool(torch.isfinite(images).all()):
            raise EvaluationError(f"{part.kind} {part.name} made values that are not finite: its steps explode")
        return images.clamp(-1, 1)
