"""Images that a text-to-image model makes of a prompt, as a model of pixels without prompts would see them.

Any text-to-image model or pipeline that samples will do. Its images are brought to the other model's size and channels
by the rule for image files (`tasks/image_file.py`), from 8 bits, so that they are what a folder of them would hold.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.search_spaces.edit import Way
from fewstep.search_spaces.point import SchedulePoint
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.editing.inversion import LatentCache
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.image_file import read_image
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.sampling.grids import preset_on_grid


def asked_of(subject: EditSubject, prompt: str) -> Conditions:
    """What the text model is asked for."""
    return Conditions(prompts=prompt, guidance=subject.guidance, call=subject.text_call)


def text_files(subject: EditSubject) -> ModelFiles:
    """The text model's; ConfigurationError for a model that takes no prompts, ModelError where there is none."""
    files = find_model(subject.text_model, conditions=asked_of(subject, subject.positive_prompt))
    if not files.text:
        raise ConfigurationError(
            f"text model {files.name} takes no prompts: give a text-to-image pipeline as --text-model"
        )
    return files


def text_schedule(way: Way, files: ModelFiles) -> SolverSchedule:
    """The schedule of PRESET/GRID@CALLS for a whole sampling, or the one that was given."""
    if isinstance(way, SolverSchedule):
        return way
    name, at, calls = way.partition("@")
    if not at or not calls.isdecimal() or not 1 <= int(calls) <= 200:
        raise ConfigurationError(f"way {way!r}: write PRESET/GRID@CALLS with 1 to 200 calls, or give a schedule")
    return preset_on_grid(name, files.noise, int(calls))


class PromptedImages:
    """What a subject's text model makes, for a model of (C, size, size) images; made once and kept."""

    def __init__(self, subject: EditSubject, files: ModelFiles, cache: LatentCache, device: str) -> None:
        self._subject, self._cache, self._device = subject, cache, device
        self._shape = files.channels, files.size
        self.files = text_files(subject)
        self._schedule = text_schedule(subject.text_way, self.files)
        self.calls = 0

    def __call__(self, prompt: str, seed: int, count: int) -> Tensor:
        """Images (count, C, size, size) in [-1, 1] of a prompt: noise is a function of seed and number."""
        asked = asked_of(self._subject, prompt)
        text = f"made of {self.files.hash} {asked.hash} {self._schedule.hash} {seed} {count} {self._shape}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self._cache.get(key, lambda: self._made(asked, seed, count))

    def _made(self, asked: Conditions, seed: int, count: int) -> Tensor:
        from fewstep.tasks.work import Subject, WorkerSettings
        from fewstep.tasks.worker import Worker

        try:
            worker = Worker(WorkerSettings(Subject(self._subject.text_model, conditions=asked), self._device))
            images = worker.render(SchedulePoint(schedule=self._schedule), seed, 0, count)
        except FewstepError as error:
            # The pipeline asks for arguments by the option that they have elsewhere.
            raise type(error)(str(error).replace(" --call ", " --text-call ")) from None
        self.calls += worker.calls
        channels, size = self._shape
        levels = images.cpu().add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        return torch.from_numpy(np.stack([read_image(image, channels, size) for image in levels]).astype(np.float32))
