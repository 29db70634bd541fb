"""The two latents of an edit: z, the noisy image at the edit step, and h, what the network's middle block gives there.

Of a UNet that is its bottleneck, of a transformer the tokens behind the first half of its blocks. Shapes: z
(B, C, H, W); h (B, K, H', W') or tokens (B, L, K), whatever the network has. Both are read and moved at one call:
`captured` reads h during a call, `shifted` adds to it during one, and neither touches any other call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ModelError


def middle_block(module: nn.Module) -> nn.Module:
    """The middle block; ModelError for a network that has none."""
    block = getattr(module, "mid_block", None)
    blocks = getattr(module, "transformer_blocks", None)
    if block is None and isinstance(blocks, nn.ModuleList) and len(blocks):
        block = blocks[(len(blocks) - 1) // 2]
    if not isinstance(block, nn.Module):
        raise ModelError(f"{type(module).__name__} has no middle block: edit latent z alone (--latent z)")
    return block


def _first(output: Any) -> Tensor:
    """The hidden states of a block that gives more besides."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


class Captured:
    """What `captured` found: `h` (B, K, H', W') after one call of the network."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The hook."""
        self._found.append(_first(output).detach())

    def h(self, count: int) -> Tensor:
        """The bottleneck of the `count` images; of a guided call, which runs on two batches, the conditional one."""
        if len(self._found) != 1:
            raise RuntimeError(f"the middle block ran {len(self._found)} times in one call")
        return self._found[0][-count:]


@contextmanager
def captured(module: nn.Module) -> Iterator[Captured]:
    """While the block lasts, remember what the middle block gives."""
    found = Captured()
    handle = middle_block(module).register_forward_hook(found)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def shifted(module: nn.Module, shift: Tensor | None) -> Iterator[None]:
    """While the block lasts, add `shift`, of one image's shape, to what the middle block gives."""
    if shift is None:
        yield
        return
    block = middle_block(module)

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        h = _first(output)
        if h.shape[1:] != shift.shape:
            raise ModelError(
                f"the boundary is for bottlenecks {tuple(shift.shape)}, this network has {tuple(h.shape[1:])}: "
                "fit it with this model"
            )
        moved = h + shift.to(h)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def rescaled(moved: Tensor, before: Tensor) -> Tensor:
    """`moved` (B, ...) with the norms of `before`: each image back on the shell that it was on."""
    ratio = before.flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)
    # Where nothing moved the ratio is 1 up to rounding, and must be 1.
    ratio = torch.where((moved == before).flatten(1).all(dim=1), torch.ones_like(ratio), ratio)
    return moved * ratio.view(-1, *(1,) * (moved.ndim - 1))
