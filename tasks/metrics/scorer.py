"""A scorer of one's own, such as ImageReward or an aesthetic predictor: `scorer:MODULE:CALLABLE`.

The callable takes images (N, C, H, W) in [-1, 1] on the worker's device and a list of N prompts, which are empty where
there are none, and gives N scores, a tensor or numbers. A function without arguments, or a class, is called once and
gives that callable. Higher is better, so the figure is minus the mean score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics.grouped import MeanMetric
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces.loaded import load_callable, short_name
from fewstep.tasks.work import Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

Score = Callable[[Tensor, list[str]], Any]


class Scorer(MeanMetric):
    """Minus the mean score."""

    figure: ClassVar[str] = "neg-score"
    higher: ClassVar[bool] = True
    quality: ClassVar[str] = "score"
    signed: ClassVar[bool] = True

    def placed(self, setting: Setting, argument: str) -> Setting:
        """The argument is the callable."""
        if not argument:
            raise ConfigurationError("metric scorer needs what scores: write it as scorer:MODULE:CALLABLE")
        return setting

    @cached_property
    def _loaded(self) -> tuple[Score, str]:
        """The callable, and its content address."""
        return load_callable(self.argument, "scorer", "(images, prompts) -> scores", self.setting.device)

    def check(self) -> None:
        """It scores two images as it should."""
        shape = (2, self.files.channels, self.files.size, self.files.size)
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        try:
            found = self._scores(drawn, ["", ""])
        except Exception as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"scorer {self.argument} fails: {type(error).__name__}: {first_line(error)}"
            ) from None
        if found.shape != (2,):
            raise ConfigurationError(f"scorer {self.argument} gives {found.shape} for 2 images: one score each is due")

    def prepare(self, worker: Worker) -> None:
        """Load it."""
        assert self._loaded

    @property
    def identity(self) -> dict[str, object]:
        """Which it is, and the code and weights that score."""
        return {"metric": self.figure, "scorer": self._loaded[1]}

    @property
    def features(self) -> str:
        """The callable's name."""
        return f"fid-{short_name(self.argument)}"

    def values(self, worker: Worker, images: Tensor, task: Task, start: int) -> Array:
        """Each image's score."""
        prompts = self.subject.conditions.prompt_list
        asked = [prompts[(start + i) % len(prompts)] if prompts else "" for i in range(len(images))]
        return self._scores(images, asked)

    @torch.no_grad()
    def _scores(self, images: Tensor, prompts: list[str]) -> Array:
        found = self._loaded[0](images.to(self.setting.device), prompts)
        if isinstance(found, Tensor):
            found = found.detach().double().cpu().numpy()
        scores = np.asarray(found, np.float64)
        # A column of scores, as a network's last layer gives them.
        return scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
