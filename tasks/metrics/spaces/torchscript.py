"""Features of a TorchScript file, `.pt` or `.ts`: images in [-1, 1] as the model makes them, or as NAME.json says."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import ConfigurationError
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.metrics.spaces.preparation import advice, read_preparation
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.finite import check_finite

ENDINGS = (".pt", ".ts")


def takes(given: str, files: ModelFiles) -> bool:
    """Whether it is the name of such a file."""
    return given.lower().endswith(ENDINGS)


def make(given: str, files: ModelFiles, device: str) -> NetworkFeatures:
    """The features; ConfigurationError where the file holds no network, or none that takes the model's images."""
    path = Path(given)
    if not path.is_file():
        raise ConfigurationError(f"no feature network at {path}: check the path")
    load: Any = torch.jit.load
    try:
        with warnings.catch_warnings():
            # That files of this kind are on their way out is for whoever makes them.
            warnings.simplefilter("ignore")
            network = load(str(path), map_location=device).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
    except Exception as error:
        raise ConfigurationError(
            f"{path} is no TorchScript file ({first_line(error)}): make one with torch.jit.script(network).save(FILE), "
            "or give MODULE:CALLABLE"
        ) from None
    check_finite(network, path, ConfigurationError)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return NetworkFeatures(
        network,
        f"fid-{path.stem}",
        content,
        (files.channels, files.size, files.size),
        device,
        where=f"features {path}",
        advice=advice(path),
        preparation=read_preparation(path),
        gradients=True,
    )


KIND = FeatureKind(make, takes, gradients=True)
