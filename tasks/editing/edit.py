"""One edit: z at the edit step is moved once, h during the one call there, then a solver makes the image.

Shapes: z (B, C, H, W); shifts of one image's shape, in the units of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, EvaluationError
from fewstep.search_spaces.edit import EditConfig, Way
from fewstep.search_spaces.schedule import MIN_GAP
from fewstep.tasks.editing.asked import call_of
from fewstep.tasks.editing.boundary import Boundary
from fewstep.tasks.editing.latents import rescaled, shifted
from fewstep.tasks.editing.path import NoisyTables, check_step, compile_part, segment
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.sampling.execute import Program
from fewstep.tasks.sampling.noise import image_noise

Call = Callable[[Tensor, float], Tensor]


class _NoisyProgram(Program):
    """A program whose rows get fresh noise, a function of (seed, image, row)."""

    def __init__(self, noisy: NoisyTables, device: str, seed: int, indices: Sequence[int]) -> None:
        super().__init__(noisy.tables, device)
        self._scales, self._seed, self._indices = noisy.scales, seed, indices

    def next_node(self, k: int, held: dict[int, Tensor]) -> Tensor:
        x = super().next_node(k, held)
        if not self._scales[k]:
            return x
        fresh = np.stack([image_noise(self._seed, i, tuple(x.shape[1:]), stream=k + 1) for i in self._indices])
        return x + self._scales[k] * torch.from_numpy(fresh).to(x)


def moved(z: Tensor, shift: Tensor | None, rescale: bool) -> Tensor:
    """z (B, ...) plus a shift, back on its old shell where `rescale` says so."""
    if shift is None:
        return z
    changed = z + shift.to(z)
    return rescaled(changed, z) if rescale else changed


def shifts(config: EditConfig, boundaries: Mapping[str, Boundary]) -> tuple[Tensor | None, Tensor | None]:
    """What a config adds to z and to h, None for nothing.

    ConfigurationError where a boundary is missing or of another step.
    """
    found: list[Tensor | None] = []
    for latent, on, strength in (("z", config.uses_z, config.strength_z), ("h", config.uses_h, config.strength_h)):
        if not on or strength == 0:
            found.append(None)
            continue
        boundary = boundaries.get(latent)
        if boundary is None:
            raise ConfigurationError(f"the edit moves {latent}, but there is no boundary of {latent}: fit one")
        if abs(boundary.facts.step - config.step) > 1e-6:
            raise ConfigurationError(
                f"the boundary of {latent} is at lambda = {boundary.facts.step:.4g}, the edit at {config.step:.4g}: "
                "fit it at the edit's step"
            )
        found.append(boundary.move(strength))
    return found[0], found[1]


class Editor:
    """Moves and generates, for one denoiser. `decode` turns what the network makes into images."""

    def __init__(self, denoiser: Denoiser, decode: Callable[[Tensor], Tensor], batch: int) -> None:
        self.denoiser, self.decode, self.batch = denoiser, decode, batch
        self.files = denoiser.files

    @torch.inference_mode()
    def edited(
        self,
        z: Tensor,
        config: EditConfig,
        boundaries: Mapping[str, Boundary],
        seed: int = 0,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] from z (N, ...) at the config's step. Conditions and noise of an image follow
        from `seed` and its index, its place in z unless it is given. EvaluationError where images are not finite."""
        z_shift, h_shift = shifts(config, boundaries)
        if z_shift is not None and z_shift.shape != z.shape[1:]:
            raise ConfigurationError(
                f"the boundary is for latents {tuple(z_shift.shape)}, the images give {tuple(z.shape[1:])}"
            )
        return self._generate(moved(z, z_shift, config.rescale), h_shift, config, seed, indices or range(len(z)))

    def reconstructed(
        self, z: Tensor, config: EditConfig, seed: int = 0, indices: Sequence[int] | None = None
    ) -> Tensor:
        """What the same way back makes of an unmoved z: the edit of strength 0."""
        still = config.model_copy(update={"strength_z": 0.0, "strength_h": 0.0})
        return self.edited(z, still, {}, seed, indices)

    def _generate(
        self, z: Tensor, h_shift: Tensor | None, config: EditConfig, seed: int, places: Sequence[int]
    ) -> Tensor:
        noise = self.files.noise
        check_step(config.step, noise)
        part = segment(config.generation, noise, config.step)
        tables = compile_part(part, noise, self.files.prediction_type, config.eta, config.eta_window)
        device, module = self.denoiser.device, self.denoiser.network.module
        found = []
        for start in range(0, len(z), self.batch):
            batch = z[start : start + self.batch].to(device)
            indices = places[start : start + len(batch)]
            program = _NoisyProgram(tables, device, seed, indices)
            call = call_of(self.denoiser, indices, part)
            found.append(self.decode(program(_shifted_once(call, module, h_shift), batch)).cpu())
        images = torch.cat(found)
        if not bool(torch.isfinite(images).all()):
            raise EvaluationError("the edited images are not finite: use a smaller strength or more calls")
        return images.clamp(-1, 1)

    @torch.inference_mode()
    def sampled_latents(self, step: float, way: Way, seed: int, first: int, count: int) -> Tensor:
        """z (count, ...) at the step, on the way of samples `first` .. of `seed` from noise; nothing is inverted.

        At the model's own start it is the noise.
        """
        noise = self.files.noise
        if step - noise.lambda_start < MIN_GAP:
            found = [torch.from_numpy(image_noise(seed, i, self.files.shape)) for i in range(first, first + count)]
            return torch.stack(found) * noise.prior_scale(noise.lambda_start)
        part = segment(way, noise, noise.lambda_start, step)
        tables = compile_part(part, noise, self.files.prediction_type).tables
        found = []
        for start in range(first, first + count, self.batch):
            indices = range(start, min(start + self.batch, first + count))
            x = torch.from_numpy(np.stack([image_noise(seed, i, self.files.shape) for i in indices]))
            call = call_of(self.denoiser, indices, part)
            x = x.to(self.denoiser.device) * tables.prior_scale
            found.append(Program(tables, self.denoiser.device)(call, x).cpu())
        return torch.cat(found)


def _shifted_once(call: Call, module: nn.Module, shift: Tensor | None) -> Call:
    """A denoiser whose first call has its bottleneck shifted, and no other."""
    pending = [shift]

    def once(x: Tensor, time: float) -> Tensor:
        with shifted(module, pending.pop() if pending else None):
            return call(x, time)

    return once
