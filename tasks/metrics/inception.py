"""FID's own feature space: the Inception network and weights of pytorch-fid.

Shapes: images (N, 1 or 3, H, W) in [-1, 1]; features (N, 2048).
Images are rounded to 8 bits first, as if they were saved to PNG and read back: that is what published figures
were measured on, so ours equal those of `python -m pytorch_fid` on the saved images.

pytorch-fid is imported where it is used: it brings torchvision, seconds that small domains need not wait for.
"""

from __future__ import annotations

import os
import pickle
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics._network import in_slices, weights_hash
from fewstep.tasks.metrics._rebind import rebound
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.models.finite import check_finite

WEIGHTS_VARIABLE = "FEWSTEP_INCEPTION"
WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
DIM = 2048


class InceptionFeatures:
    """The 2048 pooled features that FID is defined on.

    Weights come from `weights` (a file), else the file that FEWSTEP_INCEPTION names, else torch's cache, else
    pytorch-fid's download. Raises DataError, saying what to do, where none of them gives usable weights.
    """

    def __init__(self, weights: Path | str | None = None, device: str = "cpu", batch_size: int = 64) -> None:
        self.name = "fid-inception"
        self.dim = DIM
        self._network = _network(_weights(weights)).to(device)
        self._weight = next(self._network.parameters())
        self._batch_size = batch_size
        self.hash = weights_hash(self._network.state_dict())

    def __call__(self, images: Tensor) -> Array:
        """Features (N, 2048) of images (N, C, H, W) in [-1, 1]; one channel is repeated three times.

        Raises ConfigurationError for other numbers of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ConfigurationError(
                f"Inception measures grey or RGB images (N, 1 or 3, H, W); got {tuple(images.shape)}: "
                "decode latents first, or use a feature space of the model's own data"
            )
        return in_slices(self._features, images, self._batch_size, DIM, self._weight)

    def _features(self, images: Tensor) -> Tensor:
        eight_bits = ((images + 1.0) * 127.5).clamp(0.0, 255.0).round()
        pooled: Tensor = self._network(eight_bits.expand(-1, 3, -1, -1) / 255.0)[0]
        return pooled.flatten(1)


def _weights(path: Path | str | None) -> dict[str, Any]:
    """The state dict from the first source that is given, or DataError."""
    given = path or os.environ.get(WEIGHTS_VARIABLE)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    file = Path(given) if given else cached
    try:
        if given or cached.is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = torch.hub.load_state_dict_from_url(
                WEIGHTS_URL,
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
    except FileNotFoundError as error:
        raise DataError(f"no Inception weights at {file}: {_advice(cached)}") from error
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if given or cached.is_file():
            reason = f"{file} does not hold Inception weights ({first_line(error)})"
        else:
            reason = f"no Inception weights in {cached}, and their download failed ({first_line(error)})"
        raise DataError(f"{reason}: {_advice(cached)}") from error
    if not isinstance(state, dict):
        raise DataError(f"{file} does not hold a dictionary of weights: {_advice(cached)}")
    return state


def _network(state: dict[str, Any]) -> nn.Module:
    """pytorch-fid's network with these weights; its constructor insists on a download, so it gets ours."""
    from pytorch_fid import inception

    build = rebound(inception.fid_inception_v3, load_state_dict_from_url=lambda *_, **__: state)
    network: nn.Module = inception.InceptionV3.__new__(inception.InceptionV3)
    try:
        rebound(inception.InceptionV3.__init__, fid_inception_v3=build)(network)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"the weights do not fit pytorch-fid's Inception ({first_line(error)}): use {WEIGHTS_FILE}"
        ) from error
    check_finite(network, WEIGHTS_FILE, DataError)
    return network.eval()


def _advice(cached: Path) -> str:
    return (
        f"download {WEIGHTS_URL} to {cached} or set {WEIGHTS_VARIABLE} to the file, or choose a bundled feature space"
    )
