"""What was measured of a large set of images before a kill, in a folder beside the result.

Moments of every whole group of images, and the features of the batches after them. A file appears whole or not at all,
so that the same measurement goes on behind the last one, and ends with the bits of one that was never killed.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fewstep.errors import ConfigurationError, DataError
from fewstep.files import read_text, write_text, write_whole
from fewstep.tasks.metrics.moments import Array, Moments


class Partial:
    """The folder of one measurement, which `key` names; ConfigurationError where it is another's."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, named = folder, folder / "of"
        if folder.exists() and not (named.is_file() and read_text(named) == key):
            raise ConfigurationError(
                f"{folder} is of other images, features or sizes: delete it, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(named, key)
        self._groups = self._batches = 0

    def load(self) -> tuple[list[Moments], list[Array]]:
        """Moments of the groups that are whole, and features of the batches behind them."""
        groups: list[Moments] = []
        while (path := self._group(len(groups))).is_file():
            parts = _read(path)
            groups.append(Moments(int(parts["count"]), parts["mean"], parts["scatter"]))
        batches: list[Array] = []
        while (path := self._batch(len(groups), len(batches))).is_file():
            batches.append(_read(path)["features"])
        self._groups, self._batches = len(groups), len(batches)
        return groups, batches

    def add(self, features: Array) -> None:
        """Keep the features of the next batch."""
        _write(self._batch(self._groups, self._batches), features=features)
        self._batches += 1

    def close(self, moments: Moments) -> None:
        """Keep the moments of the group that the batches have made, and not those any more."""
        _write(self._group(self._groups), count=np.array(moments.count), mean=moments.mean, scatter=moments.scatter)
        for number in range(self._batches):
            self._batch(self._groups, number).unlink(missing_ok=True)
        self._groups, self._batches = self._groups + 1, 0

    def remove(self) -> None:
        """Delete it: the result is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _group(self, number: int) -> Path:
        return self._folder / f"group-{number:06d}.npz"

    def _batch(self, group: int, number: int) -> Path:
        return self._folder / f"group-{group:06d}-batch-{number:06d}.npz"


def _write(path: Path, **arrays: Any) -> None:
    held = io.BytesIO()
    np.savez(held, **arrays)
    write_whole(path, held.getvalue())


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}): delete its folder, and measure again") from None
