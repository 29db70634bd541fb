"""Features of an ONNX file, run by onnxruntime; what it says of its input is taken from the file.

An input (N, C, H, W) of float32 or float16; fixed numbers of channels and sizes are those that images are brought to,
a fixed N is the batch. NAME.json beside the file says the rest, and goes first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.metrics.spaces.preparation import Preparation, advice, beside, read_preparation
from fewstep.tasks.models.files import ModelFiles

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork:
    """Images (N, C, H, W) to features (N, D); `fixed` is the number of images that it takes at once, if it is fixed."""

    def __init__(self, path: Path, device: str) -> None:
        self._session = _session(path, device)
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in TYPES:
            told = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs) or "nothing"
            raise ConfigurationError(f"{path} takes {told}: it must have one input, images (N, C, H, W) in float32")
        self._name, self._type = inputs[0].name, TYPES[inputs[0].type]
        self.fixed, channels, height, width = (n if isinstance(n, int) and n > 0 else None for n in shape)
        known = Preparation(channels=channels, size=(height, width) if height and width else None)
        said = read_preparation(path, known)
        names = [output.name for output in self._session.get_outputs()]
        wanted = names[said.output] if isinstance(said.output, int) and 0 <= said.output < len(names) else said.output
        if len(names) > 1 and wanted is None:
            told = ", ".join(names)
            raise ConfigurationError(f'{path} has outputs {told}: say which, as {{"output": NAME}} in {beside(path)}')
        if wanted is not None and wanted not in names:
            raise ConfigurationError(f"{beside(path)}: {path} has no output {wanted!r} but {', '.join(names)}")
        self._output = str(wanted or names[0])
        # The output is chosen here.
        self.preparation = said.model_copy(update={"output": None})

    @property
    def output(self) -> str:
        """The output's name."""
        return self._output

    def __call__(self, images: Tensor) -> Any:
        """Features of prepared images, as an array."""
        values = images.detach().cpu().numpy().astype(self._type)
        step = self.fixed or len(values)
        return np.concatenate([self._run(values[i : i + step]) for i in range(0, len(values), step)])

    def _run(self, values: Any) -> Any:
        missing = max(0, (self.fixed or 0) - len(values))
        padded = np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
        (found,) = self._session.run([self._output], {self._name: padded})
        return np.asarray(found)[: len(values)]


def takes(given: str, files: ModelFiles) -> bool:
    """Whether it is the name of such a file."""
    return given.lower().endswith(".onnx")


def make(given: str, files: ModelFiles, device: str) -> NetworkFeatures:
    """The features; ConfigurationError without onnxruntime, or where the file is no network of images."""
    path = Path(given)
    if not path.is_file():
        raise ConfigurationError(f"no feature network at {path}: check the path")
    network = OnnxNetwork(path, device)
    return NetworkFeatures(
        network,
        f"fid-{path.stem}",
        f"{_content(path)} {network.output}",
        (files.channels, files.size, files.size),
        device,
        where=f"features {path}",
        advice=advice(path),
        preparation=network.preparation,
    )


def _session(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            f"{path} needs onnxruntime ({error}): pip install 'fewstep[onnx]', or give a TorchScript file"
        ) from None
    wanted = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    providers = [p for p in (wanted, "CPUExecutionProvider") if p in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys(providers)))
    except Exception as error:
        # Its errors share no base of their own.
        raise ConfigurationError(
            f"{path} is no ONNX file that onnxruntime reads ({first_line(error)}): export it again"
        ) from None


def _content(path: Path) -> str:
    """SHA-256 of the file, and of those beside it that it names: where its weights are too large for one."""
    data = path.read_bytes()
    digest = hashlib.sha256(data)
    for other in sorted(path.parent.iterdir()):
        if other != path and other.is_file() and other.name.encode() in data:
            with other.open("rb") as file:
                digest.update(other.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


KIND = FeatureKind(make, takes)
