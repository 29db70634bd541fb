"""What a calibration has finished, on disk: one safetensors file that is replaced after every part."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.errors import DataError


class Kept:
    """Tensors by part and name. Without a path they are kept in memory alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._parts: dict[str, dict[str, Tensor]] = {}
        if path is None or not path.is_file():
            return
        try:
            for key, value in load_file(path).items():
                part, _, name = key.rpartition(":")
                self._parts.setdefault(part, {})[name] = value
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it to calibrate anew") from error

    def __contains__(self, part: str) -> bool:
        return part in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __getitem__(self, part: str) -> dict[str, Tensor]:
        return self._parts[part]

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a finished part; the file is whole at every moment."""
        self._parts[part] = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flat = {f"{part}:{name}": value for part, found in self._parts.items() for name, value in found.items()}
        aside = self.path.with_suffix(f".{os.getpid()}.tmp")
        with aside.open("wb") as file:
            file.write(save(flat))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
