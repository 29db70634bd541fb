"""The layout of guided-diffusion (2105.05233) and improved-diffusion (2102.09672): `input_blocks`, `output_blocks`."""

from __future__ import annotations

from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.published.network import Asked, Converted, named
from fewstep.tasks.models.published.time_told import told_thousandfold
from fewstep.tasks.models.published.unet import Block, Level, Parts, put_together
from fewstep.tasks.models.published.weights import Weights

GROUPS = 32
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def is_guided(weights: Weights) -> bool:
    """Whether the names are this layout's."""
    return "input_blocks.0.0.weight" in weights


def convert_guided(weights: Weights, asked: Asked) -> Converted:
    """A UNet2DModel of the same function; ModelError where that class cannot be it, or too little is said."""
    if asked.side is None:
        raise ModelError(f"{weights.place} does not say the side of what its network makes: give size")
    first = weights.take("time_embed.0.weight")
    ends = named("conv_in", weights.layer("input_blocks.0.0")) | {
        "time_embedding.linear_1.weight": told_thousandfold(first, 0.0) if asked.predicts == "flow" else first,
        "time_embedding.linear_1.bias": weights.take("time_embed.0.bias"),
        **named("time_embedding.linear_2", weights.layer("time_embed.2")),
        **named("conv_norm_out", weights.layer("out.0")),
        **named("conv_out", weights.layer("out.2")),
    }
    if "label_emb.weight" in weights:
        ends["class_embedding.weight"] = weights.take("label_emb.weight")
    count = len(weights.numbers("output_blocks."))
    ups = [_mover(weights, f"output_blocks.{i}") is not None for i in range(count)]
    levels = sum(ups) + 1
    each = count // levels - 1
    if count != levels * (each + 1) or len(weights.numbers("input_blocks.")) != levels * (each + 1) - 1:
        raise ModelError(
            f"{weights.place}: {count} output_blocks in {levels} levels are not the blocks of a UNet2DModel"
        )
    down, up = [Level() for _ in range(levels)], [Level() for _ in range(levels)]
    for number, level in enumerate(down):
        at = 1 + number * (each + 1)
        level.blocks = [_block(weights, f"input_blocks.{i}", asked) for i in range(at, at + each)]
        if number + 1 < levels:
            level.mover = _moved(weights, f"input_blocks.{at + each}.0")
    for number, level in enumerate(up):
        at = number * (each + 1)
        last = f"output_blocks.{at + each}"
        mover = _mover(weights, last) if number + 1 < levels else None
        level.mover = _moved(weights, mover) if mover else None
        level.blocks = [_block(weights, f"output_blocks.{i}", asked) for i in range(at, at + each + 1)]
    attention = _attention(weights, "middle_block.1", asked)
    middle = Block(_residual(weights, "middle_block.0"), *attention), Block(_residual(weights, "middle_block.2"))
    return put_together(Parts(ends, down, middle, up, GROUPS, asked.side), weights.place)


def _mover(weights: Weights, block: str) -> str | None:
    """The name of what leads from a block to the next level: an `Upsample`, or a second residual block."""
    parts = weights.numbers(f"{block}.")
    moves = [i for i in parts if i and any(f"{block}.{i}.{n}.weight" in weights for n in ("conv", "in_layers.0"))]
    return f"{block}.{moves[-1]}" if moves else None


def _moved(weights: Weights, name: str) -> dict[str, Tensor]:
    """A residual block, or a convolution (`op` on the way down)."""
    conv = next((part for part in ("conv", "op") if f"{name}.{part}.weight" in weights), None)
    return _residual(weights, name) if conv is None else named("conv", weights.layer(f"{name}.{conv}"))


def _residual(weights: Weights, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for ours, theirs in RESIDUAL.items():
        found |= named(ours, weights.layer(f"{name}.{theirs}"))
    if f"{name}.skip_connection.weight" in weights:
        found |= named("conv_shortcut", weights.layer(f"{name}.skip_connection"))
    return found


def _block(weights: Weights, name: str, asked: Asked) -> Block:
    residual = _residual(weights, f"{name}.0")
    return Block(residual, *(_attention(weights, f"{name}.1", asked) if f"{name}.1.qkv.weight" in weights else ()))


def _attention(weights: Weights, name: str, asked: Asked) -> tuple[dict[str, Tensor], int]:
    """By diffusers' names, and the width of a head. The older order has query, key and value of each head together."""
    qkv = weights.layer(f"{name}.qkv", flat=True)
    channels = len(qkv["bias"]) // 3
    head = asked.head_width(channels)
    found = named("group_norm", weights.layer(f"{name}.norm"))
    for kind, value in qkv.items():
        if asked.attention == "legacy":
            cut = value.reshape(channels // head, 3, head, *value.shape[1:])
            parts = [cut[:, i].flatten(0, 1) for i in range(3)]
        else:
            parts = list(value.chunk(3))
        found |= {f"to_{part}.{kind}": v for part, v in zip("qkv", parts, strict=True)}
    return found | named("to_out.0", weights.layer(f"{name}.proj_out", flat=True)), head
