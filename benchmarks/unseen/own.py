"""The model's own scheduler, walked by diffusers itself, whatever it is: what a pipeline does as it ships."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.search_spaces.point import content_key
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.scheduler_settings import build_scheduler
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.worker import Worker


@dataclass(frozen=True)
class OwnScheduler:
    """A scheduler's configuration (JSON) with `nfe` calls."""

    name: str
    config: str
    nfe: int

    @cached_property
    def hash(self) -> str:
        """What its images depend on, the noise apart."""
        return content_key(scheduler=self.config, nfe=self.nfe)

    @torch.inference_mode()
    def render(self, worker: Worker, seed: int, start: int, count: int) -> Tensor:
        """Images (count, C, H, W), clipped to [-1, 1], from the noise that every other sampler starts from."""
        scheduler: Any = build_scheduler(json.loads(self.config))
        scheduler.set_timesteps(self.nfe)
        indices = range(start, start + count)
        call = worker.exact.on(indices)
        x = starting_noise(seed, start, count, worker.shape, worker.device) * getattr(
            scheduler, "init_noise_sigma", 1.0
        )
        # What some draw on their way.
        rng = torch.Generator(worker.device).manual_seed(seed * 1_000_003 + start)
        more = {"generator": rng} if "generator" in inspect.signature(scheduler.step).parameters else {}
        calls = worker.exact.calls
        for time in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(call(seen, float(time)), time, x, **more).prev_sample
        assert worker.exact.calls - calls == self.nfe * count, f"{self.name} does not make {self.nfe} calls"
        return worker.exact.finish(worker.decode(x), indices).clamp(-1, 1)


def own_schedulers(files: ModelFiles, nfe: int) -> Iterator[OwnScheduler]:
    """The one in the model's folder; beside one that draws noise on its way, DDIM on its times."""
    config = files.scheduler_config
    name = str(config["_class_name"])
    yield OwnScheduler(name, json.dumps(config, sort_keys=True), nfe)
    if name == "DDPMScheduler":
        ddim = {**config, "_class_name": "DDIMScheduler"}
        yield OwnScheduler("DDIMScheduler, same settings", json.dumps(ddim, sort_keys=True), nfe)
