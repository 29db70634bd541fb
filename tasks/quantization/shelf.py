"""Rows of tensors on disk while a calibration needs them: written batch by batch, read the same way.

What a network's layers should give does not fit in memory for all of them at once; on disk it may.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Shelf:
    """One file a name in a temporary folder inside `folder`; gone when the block ends."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="targets-", dir=folder, ignore_cleanup_errors=True)
        self._places: dict[str, tuple[Path, int]] = {}

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: Any) -> None:
        self._folder.cleanup()

    def put(self, name: str, rows: Tensor) -> None:
        """More rows (R, D), kept as float32."""
        path, width = self._places.setdefault(name, (Path(self._folder.name) / str(len(self._places)), rows.shape[1]))
        assert width == rows.shape[1]
        with path.open("ab") as file:
            rows.detach().to("cpu", torch.float32).contiguous().numpy().tofile(file)

    def read(self, name: str) -> Callable[[int], Tensor]:
        """`next(R)`: the next R rows (R, D), from the first on."""
        path, width = self._places[name]
        at = 0

        def following(count: int) -> Tensor:
            nonlocal at
            values = np.fromfile(path, np.float32, count * width, offset=4 * width * at)
            at += count
            return torch.from_numpy(values).view(count, width)

        return following

    def drop(self, name: str) -> None:
        """Free its space."""
        self._places.pop(name)[0].unlink()
