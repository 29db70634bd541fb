"""Blocks of an ADM UNet (2105.05233), wherever they come from, put together as diffusers' UNet2DModel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.published.network import Converted, named

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Block:
    """A residual block, and the attention behind it (its own width of a head), by diffusers' names."""

    residual: Tensors
    attention: Tensors | None = None
    head: int = 0

    @property
    def channels(self) -> int:
        """Channels out."""
        return len(self.residual["conv1.weight"])


@dataclass
class Level:
    """Blocks at one resolution, and what leads to the next: a residual block, a convolution, or nothing."""

    blocks: list[Block] = field(default_factory=list)
    mover: Tensors | None = None


@dataclass
class Parts:
    """A whole network; `ends` holds what is neither in a block nor in the middle. `groups` are those of its norms."""

    ends: Tensors
    down: list[Level]
    middle: tuple[Block, Block]
    up: list[Level]
    groups: int
    side: int
    null_label: bool = False


def put_together(parts: Parts, place: str) -> Converted:
    """A UNet2DModel of the same function; ModelError for what that class has no words for."""
    blocks = [b for level in (*parts.down, *parts.up) for b in level.blocks]
    heads = {b.head for b in (*blocks, *parts.middle) if b.attention}
    if len(heads) != 1:
        raise ModelError(f"{place}: heads of {sorted(heads)} channels; a UNet2DModel has heads of one width alone")
    channels = [level.blocks[-1].channels for level in parts.down]
    if parts.ends["time_embedding.linear_1.weight"].shape[1] != channels[0]:
        raise ModelError(f"{place}: a UNet2DModel sees as many sinusoids of its time as its first level has channels")
    attends = [_attends(level, place) for level in parts.down]
    if attends != [_attends(level, place) for level in reversed(parts.up)]:
        raise ModelError(f"{place}: attention on the way down and up is at different levels")
    movers = [level.mover for level in (*parts.down[:-1], *parts.up[:-1]) if level.mover is not None]
    kinds = {"conv" if "conv.weight" in mover else "resnet" for mover in movers} or {"conv"}
    if len(kinds) != 1:
        raise ModelError(f"{place}: levels are joined in different ways")
    kind = kinds.pop()
    plain = {"conv": ("DownBlock2D", "UpBlock2D"), "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}[kind]
    shifted = {len(b.residual["time_emb_proj.bias"]) == 2 * b.channels for b in blocks}
    if len(shifted) != 1:
        raise ModelError(f"{place}: blocks take their time in different ways")
    labels = parts.ends.get("class_embedding.weight")
    arguments: dict[str, Any] = {
        "sample_size": parts.side,
        "in_channels": parts.ends["conv_in.weight"].shape[1],
        "out_channels": len(parts.ends["conv_out.weight"]),
        "block_out_channels": tuple(channels),
        "layers_per_block": len(parts.down[0].blocks),
        "down_block_types": tuple("AttnDownBlock2D" if a else plain[0] for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else plain[1] for a in reversed(attends)),
        "downsample_type": kind,
        "upsample_type": kind,
        "attention_head_dim": heads.pop(),
        "norm_num_groups": parts.groups,
        # Without it the attention in the middle has no norm.
        "attn_norm_num_groups": parts.groups,
        "resnet_time_scale_shift": "scale_shift" if shifted.pop() else "default",
        "num_class_embeds": None if labels is None else len(labels),
    }
    found = dict(parts.ends)
    for side, levels, mover in (("down_blocks", parts.down, "downsamplers"), ("up_blocks", parts.up, "upsamplers")):
        for i, level in enumerate(levels):
            found |= _blocks(f"{side}.{i}", level.blocks)
            if level.mover is not None:
                found |= named(f"{side}.{i}.{mover}.0", level.mover)
    found |= _blocks("mid_block", parts.middle)
    return Converted("unet", arguments, found, parts.null_label)


def _blocks(prefix: str, blocks: Sequence[Block]) -> Tensors:
    found: Tensors = {}
    for i, block in enumerate(blocks):
        found |= named(f"{prefix}.resnets.{i}", block.residual)
        if block.attention is not None:
            found |= named(f"{prefix}.attentions.{i}", block.attention)
    return found


def _attends(level: Level, place: str) -> bool:
    answers = {block.attention is not None for block in level.blocks}
    if len(answers) != 1:
        raise ModelError(f"{place}: some blocks of a level have attention, others have none")
    return answers.pop()
