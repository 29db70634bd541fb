"""A whole pipeline as a denoiser: (x, time) -> output for a batch of image indices, and from points to images.

Shapes: x and output (B, ...) as the pipeline's scheduler sees them, which may be packed tokens or latents of a video;
images (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError, FewstepError, ModelError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.restart import restarted
from fewstep.tasks.faults import first_line
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.pipelines.arguments import call_arguments, check_arguments, remembered_prompts
from fewstep.tasks.models.pipelines.files import PipelineFiles
from fewstep.tasks.models.pipelines.loading import load_pipeline
from fewstep.tasks.models.pipelines.puppet import MANY, Ears, Interrupted, Puppet

# Of noise: hardly any is left out.
LESS = 1 - 1 / MANY
# Of the norm: so much does rounding change noise that is scaled.
SAME = 1e-5


class PipelineDenoiser(Denoiser):
    """A pipeline under fixed conditions; `calls` counts one call an image, guided or not.

    Guidance, prompts, and whatever else the pipeline does around its network are its own call's. What it draws itself
    (where it encodes an image, say) is a function of the image's index.
    """

    files: PipelineFiles

    def __init__(self, files: PipelineFiles, device: str = "cpu", conditions: Conditions | None = None) -> None:
        self.files, self.device = files, device
        self.conditions = conditions or Conditions()
        if conditions is not None:
            self.conditions.check(files)
            check_arguments(files, self.conditions)
        self.pipe = load_pipeline(files, device)
        self._puppet = Puppet(self.pipe.scheduler, files.noise)
        self._ears = Ears(self._puppet)
        for name, part in self.pipe.components.items():
            if isinstance(part, torch.nn.Module) and not name.startswith(("text_encoder", "vae", "image_encoder")):
                self._ears.listen(part)
        remembered_prompts(self.pipe)
        self.pipe.scheduler = self._puppet
        self.calls, self._scale = 0, self.conditions.guidance
        # Of pipelines that put noise on the known part of an image at every step: each image's, and where it begins.
        self._noise: dict[int, Tensor] = {}
        self._begun: dict[int, Tensor] = {}
        self._images: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """What the scheduler sees of one image."""
        self._puppet.ask(self.files.noise.time(self.files.noise.lambda_start), None)
        try:
            caught = self._called([0], self.conditions.guidance)
        except EvaluationError as error:
            raise ModelError(f"{error}; give what it lacks as --call NAME=VALUE") from error
        assert isinstance(caught, Interrupted)
        return tuple(caught.sample.shape[1:])

    def on(
        self, indices: Sequence[int], guidance: float | None = None, skips: Sequence[float] = ()
    ) -> Callable[[Tensor, float | Tensor], Tensor]:
        """The denoiser for the images `indices`; `guidance` goes before the conditions' own scale.

        Where a pipeline puts back the known part of an image between steps, a call does so in its x; but not where
        it begins, as the pipeline does not.
        """
        scale = self.conditions.guidance if guidance is None else guidance
        if skips:
            raise ConfigurationError("skip coefficients are for UNets that are called directly, not by a pipeline")
        if scale != 1 and "guidance_scale" not in self.files.takes:
            raise ConfigurationError(f"{self.files.pipeline.__name__} takes no guidance: leave it at 1, not {scale:g}")
        if scale < 1 and not self.files.embeds_guidance:
            raise ConfigurationError(f"guidance {scale:g}: pipelines guide from 1 on, which is none")

        def call(x: Tensor, time: float | Tensor) -> Tensor:
            if isinstance(time, Tensor) and time.ndim:
                raise ConfigurationError("a pipeline has one time for the whole batch: use a schedule, or a fixed step")
            self.calls += len(x)
            self._scale = scale
            first = self._is_start(x, indices)
            self._puppet.ask(float(time), x)
            caught = self._called(indices, scale, begun=x if first else None)
            assert isinstance(caught, Interrupted)
            if "mask_image" in self.files.takes and not first:
                # Between steps such a pipeline puts back what is known: whoever goes on has to go on from there.
                x.copy_(caught.sample)
            return caught.output[:, : x.shape[1]].to(x.dtype)

        return call

    @property
    def _begins_with_image(self) -> bool:
        files = self.files
        return files.strength is not None and (files.strength < 1 or "mask_image" not in files.takes)

    def _is_start(self, x: Tensor, indices: Sequence[int]) -> bool:
        """Whether x is what its images began with, in another scale maybe, in a pipeline that puts back what is known.

        To the pipeline it is then its own start.
        """
        if not self._puts_back(indices):
            return False
        flat, told = x.flatten().double(), torch.stack([self._begun[i] for i in indices]).to(x).flatten().double()
        scale = (flat @ told) / (told @ told)
        return float((flat - scale * told).norm()) <= SAME * float(flat.norm())

    def _puts_back(self, indices: Sequence[int]) -> bool:
        """Whether the pipeline knows a part of these images, which began here."""
        return "latents" in self.files.takes and all(i in self._noise for i in indices)

    def fitted(self, schedule: SolverSchedule) -> SolverSchedule:
        """What begins with an image needs no first step that guesses it: such a schedule begins a node later."""
        if schedule.first_call == "model" or not self._begins_with_image:
            return schedule
        rest, _ = restarted(schedule, 1)
        return rest or schedule

    def begin(self, noise: Tensor, indices: Sequence[int], lambda_: float) -> Tensor:
        """Noise alone, or on the image that the pipeline begins with."""
        files = self.files
        for i in indices:
            self._noise.pop(i, None)
        begun = super().begin(noise, indices, lambda_)
        if self._begins_with_image:
            alpha, sigma = files.noise.alpha_sigma(lambda_)
            begun = alpha * self._image(indices, noise, files.noise.time(lambda_)) + sigma * noise
        if "mask_image" in files.takes:
            self._noise.update(zip(indices, noise, strict=True))
            self._begun.update(zip(indices, begun, strict=True))
        return begun

    def _image(self, indices: Sequence[int], noise: Tensor, time: float) -> Tensor:
        """What the pipeline puts its noise on, of the noise's shape and type."""
        key = tuple(indices)
        if key not in self._images:
            for whole in (False, True):
                self._puppet.ask_image(time, whole)
                caught = self._called(indices, self.conditions.guidance, strength=LESS)
                assert isinstance(caught, Interrupted)
                found = caught.sample.to(noise)
                # Some pack their latents after that: of these the loop tells.
                if found.shape == noise.shape:
                    break
            self._images[key] = found
        return self._images[key]

    def finish(self, points: Tensor, indices: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) of the last points, as the pipeline decodes them; of a video one frame.

        Image i is frame i mod F of its video of F frames: over the images, each frame has its share.
        """
        self._puppet.ask(self.files.noise.time(self.files.noise.lambda_end), points, False)
        made = self._called(indices, self._scale)
        assert not isinstance(made, Interrupted)
        images = np.asarray(made, np.float32)
        if images.ndim == 5:
            images = np.stack([video[i % len(video)] for i, video in zip(indices, images, strict=True)])
        found = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
        self._check_size(found)
        return found.to(points.device)

    def _called(
        self, indices: Sequence[int], guidance: float, strength: float = 1.0, begun: Tensor | None = None
    ) -> Any:
        """Interrupted where the network was asked, images where the point was to be decoded.

        What the pipeline knows of the images gets their own noise; but it puts nothing back into `begun`.
        """
        arguments = call_arguments(self.files, self.conditions, indices, guidance)
        puts_back, puppet = self._puts_back(indices), self._puppet
        noise = torch.stack([self._noise[i] for i in indices]) if puts_back else None
        # An inpainting pipeline that begins with an image draws its noise, and then other things: it has to draw it.
        draws = puts_back and self._begins_with_image and puppet.calls_network
        puppet.known_by(noise, begun, draws)
        if "strength" in self.files.takes:
            arguments["strength"] = LESS if draws else strength
        if noise is not None and not draws:
            arguments["latents"] = noise.to(self.files.loading.torch_dtype)
        try:
            with self._ears.during():
                return self.pipe(**arguments)[0]
        except Interrupted as caught:
            return caught
        except (FewstepError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise EvaluationError(f"{self.files.pipeline.__name__} failed: {first_line(error)}") from error

    def _check_size(self, images: Tensor) -> None:
        """EvaluationError where the pipeline makes other images than its configuration lets expect."""
        made, expected = tuple(images.shape[1:]), (self.files.channels, *self.files.sides)
        if made != expected:
            raise EvaluationError(
                f"{self.files.pipeline.__name__} makes images {made} where {expected} were expected: give its height "
                "and width"
            )
