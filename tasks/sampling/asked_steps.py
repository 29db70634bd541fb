"""How many steps a call of `set_timesteps` asks for, in whichever of diffusers' ways it says so.

Pipelines give a number, or sigmas or timesteps (`retrieve_timesteps`). A found schedule has times of its own, so that
these can only say how many there are. They are taken for that where they say no more: where the pipeline made them
itself, being asked for a number; where they are even, from all noise on, as flow pipelines make them for their
scheduler to bend; where they are the schedule's own. Anything else is somebody's wish for other times, and refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import ConfigurationError
from fewstep.tasks.sampling.pipeline_frames import calling_pipeline

# Pipelines round times to whole ones before they make sigmas of them.
ROUNDING = 1.5
# Sigmas and times that are meant to be a schedule's own.
EQUAL = 1e-3

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepsAsked:
    """A number of steps, and the lists that it was said with, by name."""

    steps: int
    lists: dict[str, Numbers]

    @classmethod
    def of(cls, number: Any, timesteps: Any, sigmas: Any) -> StepsAsked:
        """ConfigurationError for a number that is none, and for arguments that contradict each other."""
        given = {name: _numbers(name, value) for name, value in (("timesteps", timesteps), ("sigmas", sigmas))}
        lists = {name: values for name, values in given.items() if values is not None}
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | np.integer)):
            raise ConfigurationError(f"num_inference_steps={number!r}: give a whole number")
        counts = {len(_noisy(values) if name == "sigmas" else values) for name, values in lists.items()}
        counts |= {int(number)} if number is not None else set()
        if not counts:
            raise ConfigurationError("say how many steps: give num_inference_steps")
        if len(counts) > 1:
            raise ConfigurationError(
                f"timesteps, sigmas and num_inference_steps ask for {sorted(counts)} steps: give one"
            )
        return cls(counts.pop(), lists)

    @property
    def said(self) -> str:
        """The number as it was asked for."""
        name = next(iter(self.lists), None)
        return f"num_inference_steps={self.steps}" if name is None else f"{self.steps} {name}"

    def check(self, times: Sequence[float], sigmas: Sequence[float], train_steps: int) -> None:
        """ConfigurationError for times that are not the schedule's own, which are `times` and `sigmas`."""
        pipeline = calling_pipeline()
        own = {"timesteps": times, "sigmas": sigmas}
        for name, values in self.lists.items():
            # A pipeline that takes none from its caller made them itself.
            made = pipeline is not None and name not in pipeline.parameters
            if not made and not self._says_no_more(name, values, own[name], train_steps):
                raise ConfigurationError(
                    f"{name}={_shown(values)}: a schedule has its own times. Leave them out and choose a schedule by "
                    "num_inference_steps, or use the model's own scheduler"
                )

    def _says_no_more(self, name: str, values: Numbers, own: Sequence[float], train_steps: int) -> bool:
        if len(values) <= len(own) and np.allclose(values, own[: len(values)], rtol=EQUAL, atol=EQUAL):
            return True
        first = float(train_steps) if name == "timesteps" else 1.0
        return "sigmas" in self.lists and _is_even(values, first, train_steps)


def _noisy(sigmas: Numbers) -> Numbers:
    """Sigmas without the zero that some end with, where there is no call."""
    return sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas


def _is_even(values: Numbers, first: float, train_steps: int) -> bool:
    """Whether they fall evenly from `first`, which is all noise, to at most an even share of it."""
    values = _noisy(values)
    unit = first / train_steps
    line = np.linspace(values[0], values[-1], len(values))
    even = np.abs(values - line).max() <= ROUNDING * unit and abs(values[0] - first) <= ROUNDING * unit
    ends = values[-1] <= max(first / len(values), unit) + ROUNDING * unit
    return bool(even and ends)


def _numbers(name: str, value: Any) -> Numbers | None:
    if value is None:
        return None
    try:
        made = np.asarray([float(v) for v in value], np.float64)
    except (TypeError, ValueError):
        made = np.empty(0)
    if not len(made) or not np.all(np.isfinite(made)):
        raise ConfigurationError(f"{name}={value!r}: give a list of finite numbers, or leave it out")
    return made


def check_mu(mu: Any) -> None:
    """ConfigurationError for a `mu` that is no finite number."""
    if mu is not None and not (isinstance(mu, int | float) and math.isfinite(mu)):
        raise ConfigurationError(f"mu={mu!r}: give a finite number, or leave it out")


def _shown(values: Numbers) -> str:
    inner = ", ".join(f"{v:.4g}" for v in values[:4])
    return f"[{inner}, ...]" if len(values) > 4 else f"[{inner}]"
