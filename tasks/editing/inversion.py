"""Latents of images at an edit step, by running a solver from the clean end towards noise; kept on disk.

What is kept is addressed by everything that decides about it: model, images, step, way (with its calls), conditions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.errors import DataError, EvaluationError
from fewstep.search_spaces.edit import Way
from fewstep.tasks.editing.asked import call_of
from fewstep.tasks.editing.latents import captured
from fewstep.tasks.editing.path import check_step, compile_part, segment, towards_noise
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.sampling.execute import Program

# Latents in memory, the newest.
RECENT = 24


class LatentCache:
    """Tensors by content address, in memory and, where a folder is given, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, Tensor] = {}

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, from memory, from disk, or made now and kept."""
        if key not in self._memory:
            self._memory[key] = self._read(key, make)
            for oldest in list(self._memory)[:-RECENT]:
                del self._memory[oldest]
        return self._memory[key]

    def _read(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return make()
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["latents"]
            except (OSError, SafetensorError, KeyError) as error:
                raise DataError(f"{path} is damaged ({error}): delete it to invert again") from error
        found = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"latents": found.contiguous()}, aside)
        aside.replace(path)
        return found


def content_of(images: Tensor) -> str:
    """Content address of a batch of images: 16 hex digits."""
    data = np.ascontiguousarray(images.cpu().numpy())
    return hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()[:16]


class Inverter:
    """Inverts what the network denoises (images, or their latents where there is an autoencoder)."""

    def __init__(self, denoiser: Denoiser, cache: LatentCache, batch: int) -> None:
        self.denoiser, self.cache, self.batch = denoiser, cache, batch
        self.files = denoiser.files

    def z(self, x: Tensor, step: float, way: Way) -> Tensor:
        """x_t at lambda = `step` of clean x (N, C, H, W). EvaluationError where it does not stay finite."""
        part = towards_noise(segment(way, self.files.noise, step), self.files.noise)
        key = self._key("z", content_of(x), step=step, way=part.hash)
        return self.cache.get(key, lambda: self._run(x, step, way))

    def h(self, z: Tensor, step: float) -> Tensor:
        """The bottleneck of z (N, C, H, W) at lambda = `step`, from one call of its own."""
        return self.cache.get(self._key("h", content_of(z), step=step), lambda: self._bottleneck(z, step))

    def _key(self, kind: str, content: str, **parts: object) -> str:
        text = f"{kind} {self.files.hash} {self.denoiser.conditions.hash} {content} {sorted(parts.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @torch.inference_mode()
    def _run(self, x: Tensor, step: float, way: Way) -> Tensor:
        noise = self.files.noise
        check_step(step, noise)
        part = towards_noise(segment(way, noise, step), noise)
        program = Program(compile_part(part, noise, self.files.prediction_type).tables, self.denoiser.device)
        alpha, _ = noise.alpha_sigma(part.lambdas[0])
        found = []
        for start in range(0, len(x), self.batch):
            batch = x[start : start + self.batch].to(self.denoiser.device) * alpha
            call = call_of(self.denoiser, range(start, start + len(batch)), part)
            found.append(program(call, batch).cpu())
        z = torch.cat(found)
        if not bool(torch.isfinite(z).all()):
            raise EvaluationError(f"inversion by {part.name or part.hash} is not finite: use more calls, or ddim")
        return z

    @torch.inference_mode()
    def _bottleneck(self, z: Tensor, step: float) -> Tensor:
        noise = self.files.noise
        check_step(step, noise)
        found = []
        for start in range(0, len(z), self.batch):
            batch = z[start : start + self.batch].to(self.denoiser.device) * noise.input_scale(step)
            with captured(self.denoiser.network.module) as seen:
                self.denoiser.on(range(start, start + len(batch)))(batch, noise.time(step))
            found.append(seen.h(len(batch)).cpu())
        return torch.cat(found)
