"""Features of somebody's network: what it gives is checked once, before anything is measured with it.

Shapes: images (N, C, H, W) in [-1, 1]; outputs (N, D) or maps (N, D, H', W'), which are averaged over their positions;
features (N, D), float64, on the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, EvaluationError, FewstepError
from fewstep.tasks.metrics._network import in_slices
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces.preparation import Preparation

# What an image's features may differ by where other images stand beside it, of the largest feature.
ROUNDING = 1e-2
BATCH = 32
PROBES = 3


class NetworkFeatures:
    """Features that `network` gives of prepared images; `content` is what decides about its values, as a hash.

    `shape` (C, H, W) is that of the images that will come. Where nothing says how many channels the network takes, it
    is asked: as they are, then RGB for grey and grey for RGB. ConfigurationError, which starts with `where`, for a
    network that cannot take them, or whose features are not numbers, not finite, not the same twice, or not a matter
    of each image alone; `advice` says what to do.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        name: str,
        content: str,
        shape: tuple[int, int, int],
        device: str,
        *,
        where: str,
        advice: str = "",
        preparation: Preparation | None = None,
        batch_size: int = BATCH,
        gradients: bool = False,
    ) -> None:
        self.name, self.gradients = name, gradients
        self._network, self._where, self._advice, self._batch = network, where, advice, batch_size
        self._like = torch.empty(0, device=device)
        self.preparation = self._asked(shape, preparation or Preparation())
        self.dim = self._checked(shape)
        self.hash = hashlib.sha256(f"{content}\n{self.preparation.model_dump_json()}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> Array:
        """Features (N, dim); EvaluationError where they are not finite."""
        found = in_slices(self.tensor, images, self._batch, self.dim, self._like)
        if broken := int((~np.isfinite(found).all(axis=1)).sum()):
            raise EvaluationError(f"{broken} of {len(found)} feature vectors of {self.name} are not finite")
        return found

    def tensor(self, images: Tensor) -> Tensor:
        """The same as a tensor, on the images' device; gradients pass where the network lets them."""
        return self._of(self.preparation, images)

    def _of(self, preparation: Preparation, images: Tensor) -> Tensor:
        found = chosen(self._network(preparation(images)), preparation.output)
        if isinstance(found, np.ndarray):
            found = torch.from_numpy(found)
        if not isinstance(found, Tensor):
            raise ConfigurationError(f"it gives {type(found).__name__}, not one tensor (N, D)")
        found = found.mean(dim=(2, 3)) if found.ndim == 4 else found
        if found.ndim != 2 or len(found) != len(images) or not found.shape[1] or found.is_complex():
            raise ConfigurationError(f"of {len(images)} images it gives {tuple(found.shape)}, not (N, D)")
        return found

    def _probes(self, shape: tuple[int, int, int]) -> Tensor:
        drawn = torch.rand((PROBES, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        return drawn.to(self._like)

    def _asked(self, shape: tuple[int, int, int], preparation: Preparation) -> Preparation:
        """The preparation with the first number of channels that the network takes."""
        others = {1: 3, 3: 1}.get(shape[0])
        tried = [preparation]
        if preparation.channels is None and others:
            tried.append(preparation.model_copy(update={"channels": others}))
        first: Exception | None = None
        for one in tried:
            try:
                with torch.no_grad():
                    self._of(one, self._probes(shape))
                return one
            except Exception as error:
                # A network of somebody else's fails with whatever it likes.
                first = first or error
        assert first is not None
        said = str(first) if isinstance(first, FewstepError) else _last_line(first)
        raise self._refusal(f"images {'x'.join(map(str, shape))} cannot go through it ({said})")

    @torch.no_grad()
    def _checked(self, shape: tuple[int, int, int]) -> int:
        images = self._probes(shape)
        first, again = (self.tensor(images).double().cpu() for _ in range(2))
        try:
            alone = self.tensor(images[:1]).double().cpu()
        except Exception as error:
            # As batch normalisation does that is not in evaluation mode.
            raise self._refusal(f"an image alone cannot go through it ({_last_line(error)})") from None
        if not bool(torch.isfinite(first).all()):
            raise self._refusal("its features are not finite")
        bearable = ROUNDING * max(float(first.abs().max()), torch.finfo(torch.float32).tiny)
        if float((first - again).abs().max()) > bearable:
            raise self._refusal("it gives other features of the same images: dropout or masks are at work in it")
        if float((first[:1] - alone).abs().max()) > bearable:
            raise self._refusal("its features of an image depend on the images beside it: save it in evaluation mode")
        return int(first.shape[1])

    def _refusal(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._where}: {reason}" + (f"; {self._advice}" if self._advice else ""))


def chosen(outputs: Any, output: int | str | None) -> Any:
    """One of several outputs, by place or name; what is alone is taken as it is."""
    if isinstance(outputs, list | tuple) and len(outputs) == 1 and output is None:
        return outputs[0]
    if output is None or isinstance(outputs, Tensor | np.ndarray):
        return outputs
    try:
        return outputs[output]
    except (LookupError, TypeError):
        raise ConfigurationError(f"it has no output {output!r}") from None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
