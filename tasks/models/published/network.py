"""What a conversion is asked for and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fewstep.errors import ModelError


@dataclass(frozen=True)
class Asked:
    """What no weights say: what the network predicts, the side of what it makes, and how its attention is cut."""

    predicts: Literal["flow", "epsilon"] = "flow"
    side: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    attention: Literal["legacy", "new"] = "legacy"

    def head_width(self, channels: int, known: int | None = None) -> int:
        """Channels of a head of an attention layer of so many; ModelError where nothing says it, or it does not fit."""
        width = self.head_channels or (channels // self.heads if self.heads else known)
        if width is None:
            raise ModelError(f"say how {channels} channels of attention are cut: give heads or head_channels")
        if width < 1 or channels % width or (self.heads and channels % self.heads):
            raise ModelError(f"{channels} channels of attention are not cut into equal heads: give other heads")
        return width


class Converted(NamedTuple):
    """`unet` or `transformer`, diffusers' arguments and weights; whether a UNet's last label is the null one."""

    kind: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    null_label: bool = False


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under a longer name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}
