"""The processes that train one network: this one alone, or those that `accelerate launch` or torchrun started.

All of them draw the same batch, from (seed, step), and each computes its parts of it, so that their number changes
nothing but rounding. Only the first one writes.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from fewstep.errors import ConfigurationError

# The others wait while the first one encodes the data, which takes as long as it takes.
PATIENCE = timedelta(days=7)


class Processes:
    """One process: number `rank` of `count`, on its own `device`."""

    rank, count = 0, 1

    def __init__(self, device: str) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> Any:
        """The module with gradients that are the mean over all processes."""
        return module

    def apart(self, wrapped: Any) -> AbstractContextManager[Any]:
        """A context in which gradients add up in this process alone."""
        return nullcontext()

    def wait(self) -> None:
        """Until every process is here."""

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return value


class Launched(Processes):
    """One of several, with the gradients of torch's DistributedDataParallel, set up by accelerate."""

    def __init__(self, device: str) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError:
            raise ConfigurationError(
                "training on several processes needs the package accelerate: pip install 'fewstep[train]'"
            ) from None
        self._accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        super().__init__(str(self._accelerator.device))
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def wrap(self, module: nn.Module) -> Any:
        """In DistributedDataParallel."""
        return self._accelerator.prepare(module)

    def apart(self, wrapped: Any) -> AbstractContextManager[Any]:
        """Without a word to the others."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(wrapped)
        return context

    def wait(self) -> None:
        """At a barrier."""
        self._accelerator.wait_for_everyone()

    def mean(self, value: float) -> float:
        """By an all-reduce."""
        total = self._accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "mean")
        return float(total)


def processes_of(device: str) -> Processes:
    """Those that were launched, where some were; `device` is cpu, cuda or cuda:0.

    Raises ConfigurationError where accelerate is not installed.
    """
    return Launched(device) if several() else Processes(device)


def several() -> bool:
    """Whether a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that speaks."""
    return int(os.environ.get("RANK", "0")) == 0
