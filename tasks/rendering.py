"""How points become images: what samples, and what changes the network that is sampled with.

A kind of point has one renderer, a class that is made with the worker. That of a kind that samples has `make`, that of
a kind that changes the network has `denoiser`. Kinds of other packages name theirs in `fewstep.spaces`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.point import OdePoint, Point, QuantizationPoint, SchedulePoint
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.flow.ode import OdeSampler
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

# From noise and image indices to what the network makes.
Make = Callable[[Tensor, range], Tensor]

RENDERERS = Registry(
    "renderer",
    {
        "schedule": "fewstep.tasks.rendering:ScheduleRenderer",
        "ode": "fewstep.tasks.rendering:OdeRenderer",
        "quantization": "fewstep.tasks.rendering:QuantizationRenderer",
    },
)


@dataclass(frozen=True)
class Changed:
    """A network in the model's place, and figures about it, such as `size_bytes`."""

    denoiser: Denoiser
    figures: Mapping[str, float] = field(default_factory=dict)


class Samples(Protocol):
    """The renderer of a kind of point that samples."""

    def make(self, point: Any, denoiser: Denoiser) -> Make:
        """What makes images of noise with a denoiser. ScheduleError where the point does not fit the model."""


class ChangesNetwork(Protocol):
    """The renderer of a kind of point that changes the network."""

    def denoiser(self, point: Any, denoiser: Denoiser) -> Changed:
        """The changed network of a denoiser; called once, and then again when another point came in between."""


def renderer(kind: str) -> Callable[[Worker], Any]:
    """The renderer of a kind of point; ConfigurationError where it has none."""
    place = RENDERERS.load(kind) if kind in RENDERERS.own else SPACES.load(kind).renderer
    found: Callable[[Worker], Any] = place
    return found


def sampling_part(point: Point) -> Point:
    """The part that samples; ConfigurationError where a point only changes the network."""
    for part in point.parts:
        if not part.changes_network:
            return part
    raise ConfigurationError(f"{point.kind} point {point.name} says nothing of how to sample: join it with a schedule")


class ScheduleRenderer:
    """Compiles schedules for the worker's model and runs their tables."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def make(self, point: SchedulePoint, denoiser: Denoiser) -> Make:
        """See Samples."""
        schedule, files = denoiser.fitted(point.schedule), self._worker.files
        if denoiser.files.quantized is not None:
            from fewstep.tasks.quantization.reach import tell_if_far

            tell_if_far(denoiser.files.quantized, schedule, files.noise)
        tables = compile_schedule(schedule, files.noise, files.prediction_type, self._worker.statistics)
        program = Program(tables, self._worker.device)

        def make(noise: Tensor, indices: range) -> Tensor:
            begun = denoiser.begin(noise, indices, schedule.lambdas[0])
            return program(denoiser.on(indices, schedule.guidance, schedule.skips), begun)

        return make


class OdeRenderer:
    """Integrates the model's ODE."""

    def __init__(self, worker: Worker) -> None:
        pass

    def make(self, point: OdePoint, denoiser: Denoiser) -> Make:
        """See Samples."""
        sampler = OdeSampler.of(denoiser, point.solver, point.solver.guidance)
        return lambda noise, indices: sampler(noise, indices).x


class QuantizationRenderer:
    """Calibrates networks under the subject's calibration schedule, once for each config and folder."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def denoiser(self, point: QuantizationPoint, denoiser: Denoiser) -> Changed:
        """See ChangesNetwork."""
        from fewstep.tasks.quantization.build import Recipe, cached

        worker, subject = self._worker, self._worker.settings.subject
        if not (subject.calibration and worker.settings.cache):
            raise ConfigurationError("this worker cannot quantise: it was set up without calibration and cache")
        schedule = SolverSchedule.from_json(subject.calibration)
        recipe = Recipe(point.config, schedule, subject.conditions, worker.statistics)
        folder, spent = cached(worker.files, recipe, Path(worker.settings.cache), worker.device)
        worker.spend(spent)
        return Changed(worker.quantized(folder), network_figures(folder))


def network_figures(folder: Path) -> dict[str, float]:
    """Figures of a quantised network on disk; ModelError where the folder holds none.

    `size_bytes` (packed weights), `bit_operations_a_call`, `parameters` and `multiply_adds_a_call`, the last three for
    one image. The size is that of the weights' file alone: the description beside it also holds how long its making
    took, and so has another length every time.
    """
    from fewstep.tasks.quantization.storage import WEIGHTS, find_quantized

    said = find_quantized(folder).description
    return {
        "size_bytes": float((folder / WEIGHTS).stat().st_size),
        "bit_operations_a_call": float(said["bit_operations"]),
        "parameters": float(sum(layer["parameters"] for layer in said["coverage"])),
        "multiply_adds_a_call": float(sum(layer["multiply_adds"] for layer in said["coverage"])),
    }
