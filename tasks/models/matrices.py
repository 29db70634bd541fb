"""How many matrices a network's weights hold, read from the heads of its files: nothing is loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=8)
def count_matrices(folder: Path) -> int:
    """Weights of two dimensions or more in the safetensors or PyTorch files of a folder."""
    from safetensors import safe_open

    count, found = 0, sorted(folder.glob("*.safetensors"))
    for path in found:
        with safe_open(path, framework="numpy") as file:
            count += sum(len(file.get_slice(key).get_shape()) > 1 for key in file.keys())  # noqa: SIM118
    if not found:
        import torch

        for path in sorted(folder.glob("*.bin")):
            held = torch.load(path, map_location="meta", weights_only=True, mmap=True)
            count += sum(value.ndim > 1 for value in held.values())
    return count
