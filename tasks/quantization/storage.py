"""A quantised network on disk: packed codes, grids and whatever stays in full precision, in one safetensors file.

    FOLDER/quantization.json       what it is: network, config, plan of each layer, model it was made of
    FOLDER/quantized.safetensors   codes of 2 to 8 bits packed to bytes, scales, zeros, biases, norms, tables

The folder needs nothing else: the original weights are not read again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, ModelError
from fewstep.files import read_json
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig
from fewstep.tasks.quantization.affine import Grid
from fewstep.tasks.quantization.layers import WeightPart
from fewstep.tasks.quantization.network import LayerPlan, QuantizedNetwork
from fewstep.tasks.quantization.packing import pack, unpack
from fewstep.tasks.quantization.table import TimeTable

SCHEMA_VERSION = 1
DESCRIPTION, WEIGHTS = "quantization.json", "quantized.safetensors"
TABLE = "time_table"
# What a description must say, and what of it decides, beside codes and grids, what the network computes.
SAID = ("model", "model_hash", "network", "network_config", "config", "plans")
DECIDES = ("network", "network_config", "config", "plans")


# What reading a damaged folder raises.
DAMAGED = (
    SafetensorError,
    ConfigurationError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
)


@dataclass(frozen=True)
class QuantizedFiles:
    """What a stored quantised network says of itself."""

    folder: Path
    description: dict[str, Any]

    @property
    def config(self) -> QuantizationConfig:
        """How it is quantised."""
        return QuantizationConfig.from_json(json.dumps(self.description["config"]))

    @property
    def model_hash(self) -> str:
        """Hash of the model that it was made of."""
        return str(self.description["model_hash"])

    @property
    def hash(self) -> str:
        """Content address of codes, grids and what is done with them: 16 hex digits."""
        # Rows that find their own ranges leave no grid: how many bits they get is said in the description alone.
        said = {name: self.description[name] for name in DECIDES}
        with (self.folder / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(json.dumps(said, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @property
    def bytes(self) -> int:
        """Size of the folder's two files."""
        return sum((self.folder / name).stat().st_size for name in (DESCRIPTION, WEIGHTS))


def find_quantized(folder: Path) -> QuantizedFiles:
    """The description of a stored network; ModelError where the folder holds none that this version reads."""
    path = folder / DESCRIPTION
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no quantised network ({DESCRIPTION}, {WEIGHTS}): make one, fewstep quantize")
    try:
        description = read_json(path, error=ModelError)
        version = int(description["schema_version"])
        if missing := [name for name in SAID if name not in description]:
            raise KeyError(missing[0])
    except (ModelError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error!r}): quantise the model again") from error
    if version > SCHEMA_VERSION:
        raise ModelError(f"{path} has schema version {version}, newer than this program's {SCHEMA_VERSION}: update it")
    return QuantizedFiles(folder, description)


def save_pretrained(network: QuantizedNetwork, folder: Path, model: str, model_hash: str, **notes: Any) -> None:
    """Write the network into a new folder, whole or not at all. `notes` go into its description."""
    aside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    settings: Any = network.module.config
    description = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "model_hash": model_hash,
        "network": type(network.module).__name__,
        "network_config": {k: v for k, v in settings.items() if not k.startswith("_")},
        "config": network.config.model_dump(),
        "plans": network.plan_json(),
        **notes,
    }
    try:
        aside.mkdir(parents=True)
        save_file(_tensors(network), aside / WEIGHTS)
        (aside / DESCRIPTION).write_text(json.dumps(description, default=str))
        for name in (WEIGHTS, DESCRIPTION):
            with (aside / name).open("rb") as file:
                os.fsync(file.fileno())
        _into_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _into_place(aside: Path, folder: Path) -> None:
    """Rename; what is there already goes, also where another process has put it there a moment ago."""
    for _ in range(10):
        with suppress(OSError):
            os.replace(aside, folder)
            return
        with suppress(FileNotFoundError):
            old = folder.with_name(f"{aside.name}-old")
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
    os.replace(aside, folder)


def load_quantized(folder: Path | str, device: str = "cpu", compact: bool = False) -> nn.Module:
    """The diffusers network of a folder that `fewstep quantize` made, for `pipe.unet`; see `from_pretrained`."""
    return from_pretrained(folder, device, compact).module


def from_pretrained(folder: Path | str, device: str = "cpu", compact: bool = False) -> QuantizedNetwork:
    """The network, switched on; its `module` takes the place of the diffusers network it was made of.

    `compact` holds the weights as packed codes, which takes about the file's size and some time at every call;
    otherwise they are made to floats at the first one. The outputs are the same.
    Raises ModelError where the folder is damaged or incomplete: no key may be missing, and none be left over.
    """
    import diffusers

    files = find_quantized(Path(folder))
    said = files.description
    kind: Any = getattr(diffusers, str(said["network"]), None)
    known = isinstance(kind, type) and issubclass(kind, nn.Module) and issubclass(kind, diffusers.ConfigMixin)
    if not known:
        raise ModelError(f"{folder}: diffusers has no network {said['network']!r}: install the version it needs")
    try:
        stored = load_file(files.folder / WEIGHTS, device="cpu")
        module = kind.from_config(said["network_config"]).eval().requires_grad_(False)
        plans = {
            name: LayerPlan(**{**plan, "segments": tuple(plan["segments"])}) for name, plan in said["plans"].items()
        }
        network = QuantizedNetwork(module, files.config, plans)
        _fill(network, stored)
    except DAMAGED as error:
        first = " ".join(str(error).split()[:30]) or type(error).__name__
        raise ModelError(f"{folder} is damaged or incomplete ({first}): quantise the model again") from error
    if stored:
        raise ModelError(f"{folder} holds {sorted(stored)[0]!r}, which its network has no place for: quantise it again")
    _place(network, device)
    network.switch(weights=True, activations="on")
    if compact:
        for layer in network.layers.values():
            layer.compact()
    return network


def _tensors(network: QuantizedNetwork) -> dict[str, Tensor]:
    found = {name: value.detach().cpu().contiguous() for name, value in network.module.state_dict().items()}
    for name, layer in network.layers.items():
        if layer.bits == FULL_PRECISION:
            found[f"{name}.weight"] = layer.weight.detach().cpu().contiguous()
            continue
        for i, part in enumerate(layer.parts):
            found[f"{name}.{i}.codes"] = pack(part.codes, layer.bits)
            found[f"{name}.{i}.scale"] = part.grid.scale.detach().flatten().cpu().contiguous()
            found[f"{name}.{i}.zero"] = part.grid.zero.detach().flatten().to(torch.uint8).cpu().contiguous()
    if network.table is not None:
        found[f"{TABLE}.times"] = network.table.times.cpu().contiguous()
        if network.table.labels is not None:
            found[f"{TABLE}.labels"] = network.table.labels.cpu().contiguous()
        for name, output in network.table.outputs.items():
            found[f"{TABLE}.outputs.{name}"] = output.cpu().contiguous()
    return found


def _fill(network: QuantizedNetwork, stored: dict[str, Tensor]) -> None:
    """Put every stored tensor in its place, taking it out of `stored`; KeyError where one is missing."""
    for name, layer in network.layers.items():
        if layer.bits == FULL_PRECISION:
            layer.original = _sized(stored, f"{name}.weight", layer.shape)
            continue
        parts = []
        for i, channels in enumerate(layer.segments):
            shape = (layer.shape[0], channels, *layer.shape[2:])
            spread = (-1, *(1,) * (len(shape) - 1))
            scale = _sized(stored, f"{name}.{i}.scale", shape[:1]).view(spread)
            zero = _sized(stored, f"{name}.{i}.zero", shape[:1]).to(scale.dtype).view(spread)
            packed = _sized(stored, f"{name}.{i}.codes", (-(-layer.bits * math.prod(shape) // 8),))
            parts.append(WeightPart(Grid(scale, zero, layer.bits), unpack(packed, layer.bits, shape)))
        layer.set_parts(parts)
    for name, quantizer in _quantizers(network.module).items():
        grids = [stored.pop(f"{name}.{key}") for key in ("scale", "zero", "times")]
        if grids[0].numel():
            quantizer.set_grids(*grids)
    _fill_table(network, stored)
    rest = {name: stored.pop(name) for name in network.module.state_dict() if name in stored}
    expected = {n for n in network.module.state_dict() if not n.endswith((".scale", ".zero", ".times"))}
    if missing := sorted(expected - set(rest)):
        raise KeyError(f"no tensor {missing[0]!r}")
    network.module.load_state_dict(rest, strict=False)


def _sized(stored: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Take a tensor out; KeyError where it is missing, ValueError where it is of another shape."""
    found = stored.pop(name)
    if tuple(found.shape) != tuple(shape):
        raise ValueError(f"{name} has the shape {tuple(found.shape)}, not {tuple(shape)}")
    return found


def _place(network: QuantizedNetwork, device: str) -> None:
    """Move everything, codes and tables included, which are no parameters of the module."""
    network.module.to(device)
    for layer in network.layers.values():
        layer.original = None if layer.original is None else layer.original.to(device)
        for part in layer.parts:
            part.to(device)
    if (table := network.table) is not None:
        labels = None if table.labels is None else table.labels.to(device)
        network.attach(TimeTable(table.times.to(device), labels, {n: v.to(device) for n, v in table.outputs.items()}))


def _fill_table(network: QuantizedNetwork, stored: dict[str, Tensor]) -> None:
    if f"{TABLE}.times" not in stored:
        return
    times, labels = stored.pop(f"{TABLE}.times"), stored.pop(f"{TABLE}.labels", None)
    start = f"{TABLE}.outputs."
    outputs = {name.removeprefix(start): stored.pop(name) for name in list(stored) if name.startswith(start)}
    network.attach(TimeTable(times, labels, outputs))


def _quantizers(module: nn.Module) -> dict[str, Any]:
    from fewstep.tasks.quantization.activations import ActivationQuantizer

    return {name: part for name, part in module.named_modules() if isinstance(part, ActivationQuantizer)}
