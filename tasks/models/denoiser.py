"""Give a network the one interface the samplers use: (x, time) -> raw output, for a batch of image indices.

Shapes: x and output (B, C, H, W) float32; time is one Python number for the whole batch, or a tensor (B,) with one for
each image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.conditions import NO_NULL_LABEL, Conditions
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.networks import load_network
from fewstep.tasks.models.skips import scaled_skips
from fewstep.tasks.models.sources import Sources

# Inputs further away than this many standard deviations are no longer the network's own fault.
FURTHEST = 100.0


class Denoiser:
    """A pretrained network under fixed conditions; `calls` counts one call an image, guided or not."""

    def __init__(self, files: ModelFiles, device: str = "cpu", conditions: Conditions | None = None) -> None:
        self.files, self.device = files, device
        self.conditions = conditions or Conditions()
        # Without conditions nothing is asked for yet; but a network that is shown images cannot do without.
        if conditions is not None or files.shown:
            self.conditions.check(files)
        self.network = load_network(files, device)
        self.sources = Sources(files, device, self.conditions) if files.condition else None
        self._classifier = None
        if self.conditions.classifier_scale:
            self._classifier = load_classifier(Path(self.conditions.classifier), device)
        self.calls = 0

    @property
    def conditional(self) -> bool:
        """Whether anything is asked for that the null condition does not."""
        return self.files.text or self.conditions.labels != "none"

    def on(
        self, indices: Sequence[int], guidance: float | None = None, skips: Sequence[float] = ()
    ) -> Callable[[Tensor, float | Tensor], Tensor]:
        """The denoiser for the images `indices`; `guidance` goes before the conditions' own scale.

        A guided call runs the network on twice the batch.
        """
        scale = self.conditions.guidance if guidance is None else guidance
        condition = self.network.condition(self.conditions, indices)
        null = self.network.null(self.conditions, len(indices))
        told_scale = 1.0
        if self.files.embeds_guidance:
            told_scale, scale = scale, 1.0
        elif not self.conditional or (scale == 0 and null is not None):
            condition, scale = null, 1.0
        if scale != 1 and null is None:
            raise ConfigurationError(f"guidance {scale:g} needs a null label: {NO_NULL_LABEL}")
        # Guidance drops the label alone.
        shown = None if self.sources is None else self.sources.shown(indices)
        doubled = condition
        if scale != 1 and condition is not None and null is not None:
            doubled = torch.cat([null, condition])

        count, dtype = itertools.count(1), self.files.loading.torch_dtype

        def call(x: Tensor, time: float | Tensor) -> Tensor:
            self.calls += len(x)
            # A tensor: diffusers cuts a Python float to a whole step.
            told = torch.as_tensor(time, dtype=torch.float32, device=x.device)
            seen = (x if shown is None else torch.cat([x, shown], 1)).to(dtype)
            with scaled_skips(self.network.module, skips):
                if scale == 1:
                    output = self.network(seen, told, condition, told_scale).to(x.dtype)
                else:
                    twice = torch.cat([told, told]) if told.ndim else told
                    without, with_ = self.network(torch.cat([seen, seen]), twice, doubled).to(x.dtype).chunk(2)
                    output = without + scale * (with_ - without)
            number = next(count)
            if not bool(torch.isfinite(output).all()):
                self._check_input(x, time, number)
            if self._classifier is None:
                return output
            if isinstance(time, Tensor):
                raise ConfigurationError(
                    "classifier guidance needs one time for the whole batch: use a schedule or a fixed-step ODE solver"
                )
            return self._guided(x, time, output, indices)

        return call

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """Raw output for the images 0 .. B - 1."""
        return self.on(range(len(x)))(x, time)

    def _check_input(self, x: Tensor, time: float | Tensor, number: int) -> None:
        """EvaluationError where it is the network that broke: its input was one that it knows.

        A sampler whose steps explode gives it something else, and says so itself.
        """
        told = float(torch.as_tensor(time).flatten()[0])
        noise, largest = self.files.noise, float(x.abs().max())
        lambda_ = noise.lambda_at(told)
        expected = noise.input_scale(lambda_) * math.hypot(*noise.alpha_sigma(lambda_))
        if largest <= FURTHEST * expected:
            raise EvaluationError(
                f"the network returned values that are not finite at call {number} (time {told:.6g}), for inputs up to "
                f"{largest:.3g}: its weights or its precision are at fault, not the schedule"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """What is denoised of one image."""
        return self.files.shape

    def fitted(self, schedule: SolverSchedule) -> SolverSchedule:
        """The schedule as it is sampled here."""
        return schedule

    def begin(self, noise: Tensor, indices: Sequence[int], lambda_: float) -> Tensor:
        """Where sampling begins at `lambda_`, from standard normal noise (B, ...)."""
        return noise * self.files.noise.prior_scale(lambda_)

    def finish(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        """Decoded images (B, C, H, W) with what was known of them put back."""
        return images if self.sources is None else self.sources.finish(images, indices)

    def _guided(self, x: Tensor, time: float, output: Tensor, indices: Sequence[int]) -> Tensor:
        """Classifier guidance (2105.05233, algorithm 2), by a classifier of clean images.

        The gradient of log p(label | x0) is taken at the predicted x0 and carried to x by alpha, the slope of
        the posterior mean for data of unit variance: eps' = eps - scale sigma alpha gradient.
        """
        assert self._classifier is not None
        noise = self.files.noise
        lambda_ = noise.lambda_at(time)
        alpha, sigma = noise.alpha_sigma(lambda_)
        means = noise.output_map(self.files.prediction_type, lambda_)
        classes = int(self._classifier.config["classes"])
        # Outside inference mode, where no gradient exists; the clones are ordinary tensors.
        with torch.inference_mode(False), torch.enable_grad():
            labels = torch.tensor([self.conditions.label(i, classes) or 0 for i in indices], device=x.device)
            x0 = (means.x0_x * x.clone() + means.x0_o * output.clone()).detach().clamp(-1, 1).requires_grad_(True)
            log_p = torch.log_softmax(self._classifier(x0), 1).gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(log_p, x0)
        change = self.conditions.classifier_scale * sigma * alpha * gradient
        # eps = eps_x x + eps_o o; without an o in eps (alpha = 0) x0 carries the change instead.
        return output - change / means.eps_o if means.eps_o else output
