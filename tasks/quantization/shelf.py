"""Rows of tensors on disk while a calibration needs them: written batch by batch, read the same way or at random.

What a network's layers should give, or what a unit is given, does not fit in memory for all images at once; on disk it
may.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass
class _File:
    """Rows of one shape and type, one behind the other."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int = 0

    @property
    def row(self) -> int:
        """Bytes of one."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shelf:
    """One file a name in a temporary folder inside `folder`; gone when the block ends."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="targets-", dir=folder, ignore_cleanup_errors=True)
        self._files: dict[str, _File] = {}
        self._made = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: Any) -> None:
        self._folder.cleanup()

    def put(self, name: str, rows: Tensor) -> None:
        """More rows (R, ...) of the shape and type of the first ones."""
        if name not in self._files:
            self._made += 1
            self._files[name] = _File(Path(self._folder.name) / str(self._made), tuple(rows.shape[1:]), rows.dtype)
        file = self._files[name]
        assert (file.shape, file.dtype) == (tuple(rows.shape[1:]), rows.dtype)
        with file.path.open("ab") as stream:
            stream.write(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        file.rows += len(rows)

    def read(self, name: str) -> Callable[[int], Tensor]:
        """`next(R)`: the next R rows (R, ...), from the first on."""
        whole, at = self.rows(name), 0

        def following(count: int) -> Tensor:
            nonlocal at
            found = whole[at : at + count].clone()
            assert len(found) == count
            at += count
            return found

        return following

    def rows(self, name: str) -> Tensor:
        """All rows (R, ...), mapped into memory: what is not looked at is not loaded."""
        file = self._files[name]
        flat = torch.from_file(str(file.path), shared=False, size=file.rows * math.prod(file.shape), dtype=file.dtype)
        return flat.view(file.rows, *file.shape)

    def joined(self, name: str, pieces: Iterable[Any], rows: int) -> Any:
        """Pieces of equal structure as one, their tensors of as many rows as each piece's batch joined and mapped.

        `rows` is the first piece's batch. What has no row an image is taken from the first piece.
        """
        first: tuple[list[Any], Any] | None = None
        joined: list[bool] = []
        for piece in pieces:
            leaves, structure = tree_flatten(piece)
            if first is None:
                first = leaves, structure
                joined = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows for leaf in leaves]
            for i, leaf in enumerate(leaves):
                if joined[i]:
                    self.put(f"{name}:{i}", leaf)
        assert first is not None
        leaves = [self.rows(f"{name}:{i}") if joined[i] else leaf for i, leaf in enumerate(first[0])]
        return tree_unflatten(leaves, first[1])

    def drop(self, name: str) -> None:
        """Free the space of a name, and of all that was joined under it."""
        for found in [key for key in self._files if key == name or key.startswith(f"{name}:")]:
            self._files.pop(found).path.unlink()
