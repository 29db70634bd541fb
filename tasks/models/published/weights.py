"""The tensors of a checkpoint file, by the names that the program which wrote it gave them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.faults import first_line

# Where training scripts keep weights among other things, averaged ones first.
INSIDE = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict", "model_state_dict", "model_dict", "model")
# What wrappers for several processes put before every name.
WRAPPER = "module."


class Weights:
    """Tensors that are taken one after the other; what nobody takes is a fault, as is what is not there."""

    def __init__(self, tensors: Mapping[str, Tensor], place: str) -> None:
        self._left, self.place = dict(tensors), place

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self, prefix: str = "") -> list[str]:
        """Those that nobody took, in their order."""
        return [name for name in self._left if name.startswith(prefix)]

    def numbers(self, prefix: str) -> list[int]:
        """What follows the prefix in the names, up to a dot, where it is a number."""
        found = {name.removeprefix(prefix).partition(".")[0] for name in self.names(prefix)}
        return sorted(int(part) for part in found if part.isdigit())

    def take(self, name: str) -> Tensor:
        """One tensor, in single precision."""
        if name not in self._left:
            raise ModelError(f"{self.place} has no {name}: it is a checkpoint of another network")
        return self._left.pop(name).float()

    def shape(self, name: str) -> tuple[int, ...]:
        """Its size, without taking it."""
        if name not in self._left:
            raise ModelError(f"{self.place} has no {name}: it is a checkpoint of another network")
        return tuple(self._left[name].shape)

    def layer(self, name: str, flat: bool = False) -> dict[str, Tensor]:
        """Weight and bias of a layer; `flat`: of a 1x1 convolution as a linear layer's."""
        weight, bias = self.take(f"{name}.weight"), self.take(f"{name}.bias")
        return {"weight": weight.flatten(1) if flat else weight, "bias": bias}

    def finished(self) -> None:
        """ModelError where something is left."""
        if self._left:
            names = list(self._left)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{self.place} has {', '.join(names[:3])}{more} besides, which has no place in the network"
            )


def read_weights(path: Path) -> Weights:
    """The weights in a .safetensors or PyTorch file; ModelError where it holds code, or no weights.

    Of several sets the averaged one is taken. Pickles are read as tensors alone: nothing in them is run.
    """
    if not path.is_file():
        raise ModelError(f"no file {path}: give a checkpoint, .safetensors or .pth")
    found = _tensors(_read(path))
    if not found:
        raise ModelError(f"{path} holds no weights by name: give the file with the network's state_dict")
    if all(name.startswith(WRAPPER) for name in found):
        found = {name.removeprefix(WRAPPER): value for name, value in found.items()}
    if broken := next((name for name, v in found.items() if not math.isfinite(float(v.double().sum()))), None):
        raise ModelError(f"{path}: {broken} holds values that are not finite")
    return Weights(found, str(path))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file is answered with whatever breaks first.
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ModelError(
                f"{path} holds more than tensors and is not unpickled, since that could run code: save its state_dict "
                "alone, or as .safetensors"
            ) from None
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error


def _tensors(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    if found := {str(k): v for k, v in value.items() if isinstance(v, Tensor)}:
        return found
    return next((found for name in INSIDE if (found := _tensors(value.get(name)))), {})
