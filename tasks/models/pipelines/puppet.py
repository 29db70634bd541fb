"""What stands in a pipeline so that somebody else takes its steps: a scheduler, and ears on its networks.

A pipeline's call is `prepare, then for every time: network, guidance, scheduler.step, then decode`. The puppet has it
make two steps. In the first the network is not asked, and what the scheduler answers is the point that is wanted; in
the second the network is called there, and its output, guided by the pipeline's own rules, is what the puppet catches.
With the first step alone, the pipeline decodes the point.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from fewstep.tasks.models.noise_schedule import NoiseSchedule


class Interrupted(Exception):  # noqa: N818 - as KeyboardInterrupt, no fault
    """Ends a pipeline's call where what is wanted is known.

    `output` is the network's, or the image that noise was to be put on; `sample` what the step was to be taken from.
    """

    def __init__(self, output: Tensor, sample: Tensor) -> None:
        super().__init__()
        self.output, self.sample = output, sample


# So many steps has a pipeline that is to say which image it begins with: hardly less than all noise is put on it.
MANY = 10_000


@dataclass
class Stepped(BaseOutput):  # type: ignore[misc]
    """What a step gives: the next point, which is all that is known of x0 too."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Puppet:
    """A scheduler of `time`, told once or twice. What is asked of it besides, the pipeline's own answers."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, stock: Any, noise: NoiseSchedule) -> None:
        self._stock, self._noise = stock, noise
        self.point: Tensor | None = None
        self.time, self.calls_network = 0.0, True
        self.steps, self.wants_image = 0, False
        self._known: Tensor | None = None
        self._begun: Tensor | None = None
        self._leaves_out = self._in_loop = False
        self.timesteps = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stock"], name)

    def ask(self, time: float, point: Tensor | None, calls_network: bool = True) -> None:
        """What the next call of the pipeline is for; without a point, its own start is called."""
        self.time, self.point, self.calls_network, self.steps = time, point, calls_network, 0
        self.wants_image = False

    def ask_image(self, time: float, in_loop: bool = False) -> None:
        """The next call of the pipeline is for the image that it begins with; `in_loop`: as its loop sees it."""
        self.ask(time, None)
        self.wants_image, self._in_loop = True, in_loop

    def known_by(self, noise: Tensor | None, begun: Tensor | None, leaves_out: bool) -> None:
        """The noise (B, ...) that the next call puts on what it knows, and the point into which it puts nothing.

        `leaves_out`: it may leave out a first step.
        """
        self._known, self._begun, self._leaves_out = noise, begun, leaves_out

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **others: Any,
    ) -> None:
        """The time, once for each step that is to be taken: what the pipeline wants instead is not asked."""
        count = MANY if self.wants_image else 1 if self.point is None or not self.calls_network else 2
        count += self._leaves_out
        self.timesteps = torch.full((count,), self.time, dtype=torch.float32, device=device)
        self.num_inference_steps, self.steps = count, 0

    @property
    def sigmas(self) -> Tensor:
        """As many as schedulers have: one more than times."""
        sigma: Tensor = self.timesteps.new_ones(len(self.timesteps) + 1)
        return sigma

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: there is one way through two steps."""

    @property
    def begin_index(self) -> int:
        """0."""
        return 0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: it comes as the network is to see it."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise (B, ...) at the model's time, which is one for all."""
        if self.wants_image:
            if self._in_loop:
                return original_samples
            raise Interrupted(original_samples, original_samples)
        if self.steps and self._begun is not None:
            return self._begun.to(noise)
        if self.steps and self._known is not None:
            noise = self._known.to(noise)
        alpha, sigma = self._noise.alpha_sigma(self._noise.lambda_at(float(timesteps.flatten()[0])))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The same, as pipelines of flows ask for it."""
        return self.add_noise(sample, noise, timestep)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, return_dict: bool = True, **_: Any
    ) -> Stepped | tuple[Tensor, Tensor]:
        """The point that is wanted, at the first step; Interrupted at the last one that calls the network."""
        self.steps += 1
        if self.point is None or self.steps > 1:
            raise Interrupted(model_output, sample)
        point = self.point.to(sample)
        return Stepped(point, point) if return_dict else (point, point)


class Ears:
    """Knows which of a pipeline's modules are called at each step, and answers for them while the point is put in.

    A module's answer is its last one of an equal call's shapes: nobody looks at it.
    """

    def __init__(self, puppet: Puppet) -> None:
        self._puppet = puppet
        self._answers: dict[tuple[int, Any], Any] = {}
        self._in_loop: set[int] = set()
        self._listening = False

    def listen(self, module: torch.nn.Module) -> None:
        """Hear the calls of a module, which stays what it is to everybody who asks for its class."""
        ears, kind = self, type(module)

        class Heard(kind):  # type: ignore[misc, valid-type]
            def __call__(self, *arguments: Any, **named: Any) -> Any:
                return ears._heard(self, super().__call__, arguments, named)

        Heard.__name__, Heard.__qualname__, Heard.__module__ = kind.__name__, kind.__qualname__, kind.__module__
        module.__class__ = cast("type[Any]", Heard)

    @contextmanager
    def during(self) -> Iterator[None]:
        """While a pipeline is called."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def _heard(self, module: Any, call: Any, arguments: Any, named: Any) -> Any:
        if not self._listening:
            return call(*arguments, **named)
        key = id(module), _shapes([*arguments, *(named[name] for name in sorted(named))])
        if self._puppet.steps > 0:
            self._in_loop.add(id(module))
        elif id(module) in self._in_loop and self._puppet.point is not None and key in self._answers:
            return self._answers[key]
        answer = call(*arguments, **named)
        if id(module) in self._in_loop:
            self._answers[key] = answer
        return answer


def _shapes(values: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(v.shape) if isinstance(v, Tensor) else None for v in values)
