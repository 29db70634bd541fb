"""The diffusers pipeline that is calling a scheduler, found on the stack, and its network's input set right.

A scheduler is asked for times and steps and never sees the pipeline. Two things need it: who said which sigmas
(`asked_steps`), and pipelines that hand their network the sample as it is, without `scale_model_input`, though a
schedule needs another input there. For these the network gets a hook for the run.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import diffusers
import torch
from torch import Tensor

from fewstep.errors import ScheduleError

# Names that pipelines give their denoisers, and what runs beside one on the same input.
NETWORKS = ("unet", "transformer", "controlnet", "prior")
# Names that pipelines give the sample in their loop, and networks their input.
SAMPLES = ("latents", "image", "sample")
INPUTS = ("sample", "hidden_states", "x")
# From a network's hook, or a pipeline's `retrieve_timesteps`, to the pipeline.
DEPTH = 24


@dataclass(frozen=True)
class Caller:
    """A pipeline in the middle of a call, the names of that call's parameters, and its strength where it has one."""

    pipeline: Any
    parameters: frozenset[str]
    strength: float | None = None

    def left_out(self, steps: int) -> int:
        """How many of so many times it leaves out at the start for its strength, 0 where it does not say.

        Its scheduler has to have that many `timesteps`.
        """
        cut = getattr(self.pipeline, "get_timesteps", None)
        if cut is None or self.strength is None or not self.strength < 1:
            return 0
        known = {"num_inference_steps": steps, "strength": self.strength, "device": None}
        known["timesteps"] = self.pipeline.scheduler.timesteps
        takes = inspect.signature(cut).parameters
        if any(p.default is p.empty and name not in known for name, p in takes.items()):
            return 0
        found = cut(**{name: value for name, value in known.items() if name in takes})
        kept = found[0] if isinstance(found, tuple) else found
        return steps - len(kept) if isinstance(kept, Tensor) else 0


def calling_pipeline() -> Caller | None:
    """The pipeline whose call this is part of, None where there is none."""
    for frame in _frames():
        if frame.f_code.co_name == "__call__":
            pipeline = frame.f_locals.get("self")
            if isinstance(pipeline, diffusers.DiffusionPipeline):
                return Caller(pipeline, _parameters(frame.f_code), _strength(frame.f_locals))
    return None


def prepare_input(
    pipeline: Any, scheduler: Any, prepared: Callable[[Tensor], Tensor | None], spared: Callable[[], bool]
) -> None:
    """Hand a pipeline's networks `prepared(sample)` in place of the sample, until that is None.

    That ends too when the pipeline gets another scheduler. ScheduleError where a network is not given the sample, but
    where it is `spared`: it then sees what it is given.
    """
    owner, ours = weakref.ref(pipeline), weakref.ref(scheduler)
    for name, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module) and name.startswith(NETWORKS):
            _hook(network, owner, ours, prepared, spared)


def _hook(
    network: torch.nn.Module,
    owner: Any,
    ours: Any,
    prepared: Callable[[Tensor], Tensor | None],
    spared: Callable[[], bool],
) -> None:
    def before(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        pipeline = owner()
        sample = _sample_of(pipeline) if pipeline is not None and pipeline.scheduler is ours() else None
        wanted = None if sample is None else prepared(sample)
        if sample is None or wanted is None:
            handle.remove()
            return None
        if wanted is sample:
            return None
        name = next((name for name in INPUTS if name in named), None)
        given = arguments[0] if arguments else named.get(name or "")
        changed = _exchanged(given, sample, wanted) if isinstance(given, Tensor) else None
        if changed is None and spared():
            handle.remove()
            return None
        if changed is None:
            raise ScheduleError(
                f"{type(network).__name__} is not given the sample itself, which the schedule needs to change: use a "
                "schedule whose first call is the model's, or call scale_model_input before the network"
            )
        if arguments:
            return (changed, *arguments[1:]), named
        return arguments, {**named, str(name): changed}

    handle = network.register_forward_pre_hook(before, with_kwargs=True)


def _exchanged(given: Tensor, sample: Tensor, wanted: Tensor) -> Tensor | None:
    """`given` with `wanted` where `sample` is: all of it, or its first part along one dimension; once or doubled.

    None where it is not there.
    """
    sizes = [i for i in range(1, sample.ndim) if given.ndim == sample.ndim and given.shape[i] != sample.shape[i]]
    repeats = len(given) // len(sample) if given.ndim == sample.ndim else 0
    if len(sizes) <= 1 and repeats * len(sample) == len(given) and repeats:
        place = given.narrow(sizes[0], 0, min(sample.shape[sizes[0]], given.shape[sizes[0]])) if sizes else given
        copies = sample.to(given).repeat(repeats, *(1,) * (sample.ndim - 1))
        if place.shape == copies.shape and torch.equal(place, copies):
            changed = given.clone()
            where = changed.narrow(sizes[0], 0, sample.shape[sizes[0]]) if sizes else changed
            where.copy_(wanted.to(given).repeat(repeats, *(1,) * (sample.ndim - 1)))
            return changed
    return None


def _sample_of(pipeline: Any) -> Tensor | None:
    """The sample in the loop of the pipeline's call; None outside of one."""
    for frame in _frames():
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipeline:
            there = frame.f_locals
            return next((there[name] for name in SAMPLES if isinstance(there.get(name), Tensor)), None)
    return None


def _strength(there: Mapping[str, Any]) -> float | None:
    """None too where something else says where the call begins."""
    given = there.get("strength")
    return float(given) if isinstance(given, int | float) and there.get("denoising_start") is None else None


def _parameters(code: CodeType) -> frozenset[str]:
    return frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
