"""Running sums in float64 that survive a kill: what a measurement adds up, on disk after every batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError, StorageError

Array = npt.NDArray[np.float64]
# x, e = eps, d = its derivative, j = the Jacobian's diagonal; of the first three also the products that are needed.
FIRST = ("x", "e", "d", "j")
SECOND = (("x", "x"), ("x", "e"), ("e", "e"), ("x", "d"), ("e", "d"))


@dataclass
class MomentSums:
    """Sums over the first `done` trajectories: totals (G, C, H, W) a name, `x0` (1, C, H, W)."""

    totals: dict[str, Array]
    done: int = 0

    @classmethod
    def empty(cls, points: int, shape: tuple[int, ...]) -> MomentSums:
        """Nothing added yet; without points only x0 is summed."""
        names = (*FIRST, *(a + b for a, b in SECOND)) if points else ()
        return cls({"x0": np.zeros((1, *shape)), **{name: np.zeros((points, *shape)) for name in names}})

    def add(self, point: int, values: dict[str, Tensor]) -> None:
        """Add a batch (B, C, H, W) of each value, and of the products that are kept, to one grid point."""
        exact = {name: value.to(torch.float64) for name, value in values.items()}
        for name, value in exact.items():
            self.totals[name][point] += value.sum(0).cpu().numpy()
        for a, b in SECOND:
            if a in exact and b in exact:
                self.totals[a + b][point] += (exact[a] * exact[b]).sum(0).cpu().numpy()

    def mean(self, name: str) -> Array:
        """Average over the trajectories; a product's name in either order."""
        return np.asarray(self.totals[name if name in self.totals else name[::-1]] / self.done, np.float64)

    def save(self, path: Path, key: str) -> None:
        """Write beside and rename, durably; StorageError where the disk refuses."""
        aside = path.with_name(path.name + ".tmp")
        try:
            save_file(self.totals, aside, metadata={"key": key, "done": str(self.done)})
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot write {path}: {error}; free space or choose another --out") from error

    @classmethod
    def resume(cls, path: Path, key: str) -> MomentSums | None:
        """What `save` left under `key`, None where there is no file.

        Raises ConfigurationError where it was begun with another key, DataError where it cannot be read.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                totals = {name: np.array(file.get_tensor(name), np.float64) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is damaged: {error}; delete it to begin again") from error
        if facts.get("key") != key:
            raise ConfigurationError(
                f"{path} was begun with other settings or another model: repeat those to go on with it, or delete it"
            )
        return cls(totals, int(facts["done"]))
