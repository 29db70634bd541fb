"""The layout of EDM's program (2206.00364) for the ADM UNet: `enc.32x32_block0`, `dec.32x32_up`."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.published.network import Asked, Converted, named
from fewstep.tasks.models.published.time_told import told_thousandfold
from fewstep.tasks.models.published.unet import Block, Level, Parts, put_together
from fewstep.tasks.models.published.weights import Weights

HEAD = 64
GROUPS, LEAST_OF_GROUP = 32, 4
RESIDUAL = {"norm1": "norm0", "conv1": "conv0", "time_emb_proj": "affine", "norm2": "norm1", "conv2": "conv1"}


def is_edm(weights: Weights) -> bool:
    """Whether the names are this layout's."""
    return "map_layer0.weight" in weights and bool(weights.names("enc."))


def convert_edm(weights: Weights, asked: Asked) -> Converted:
    """A UNet2DModel of the same function; the null label, which this layout says by zeros, is its last.

    ModelError where that class cannot be it.
    """
    _take_filters(weights)
    first = weights.take("map_layer0.weight")
    sides = sorted({int(n) for name in weights.names("enc.") for n in re.findall(r"^enc\.(\d+)x", name)}, reverse=True)
    if not sides or "out_norm.weight" not in weights:
        raise ModelError(f"{weights.place}: not the ADM UNet of EDM's program, other networks of it are not supported")
    ends = named("conv_in", weights.layer(f"enc.{sides[0]}x{sides[0]}_conv")) | {
        "time_embedding.linear_1.weight": told_thousandfold(first, 0.0) if asked.predicts == "flow" else first,
        "time_embedding.linear_1.bias": weights.take("map_layer0.bias"),
        **named("time_embedding.linear_2", weights.layer("map_layer1")),
        **named("conv_norm_out", weights.layer("out_norm")),
        **named("conv_out", weights.layer("out_conv")),
    }
    labelled = "map_label.weight" in weights
    if labelled:
        rows = weights.take("map_label.weight").T
        ends["class_embedding.weight"] = torch.cat([rows, torch.zeros_like(rows[:1])])
    down, up = [Level() for _ in sides], [Level() for _ in sides]
    last = len(sides) - 1
    for number, side in enumerate(sides):
        if number:
            down[number - 1].mover = _block(weights, f"enc.{side}x{side}_down", asked).residual
        down[number].blocks = _blocks(weights, f"enc.{side}x{side}_block", asked)
        up[last - number].blocks = _blocks(weights, f"dec.{side}x{side}_block", asked)
        if number < last:
            up[last - number - 1].mover = _block(weights, f"dec.{side}x{side}_up", asked).residual
    lowest = f"dec.{sides[-1]}x{sides[-1]}"
    middle = _block(weights, f"{lowest}_in0", asked), _block(weights, f"{lowest}_in1", asked)
    groups = _groups([*(b for level in (*down, *up) for b in level.blocks), *middle], weights.place)
    return put_together(Parts(ends, down, middle, up, groups, sides[0], labelled), weights.place)


def _take_filters(weights: Weights) -> None:
    """ModelError for a filter that is not the mean of four pixels, which is what diffusers has."""
    for name in weights.names():
        if name.endswith("resample_filter"):
            values = weights.take(name)
            if values.shape[-2:] != (2, 2) or not torch.allclose(values, torch.full_like(values, 0.25)):
                raise ModelError(
                    f"{weights.place}: {name} is no mean of four pixels, which has no place in a UNet2DModel"
                )


def _groups(blocks: list[Block], place: str) -> int:
    """This program has fewer groups where there are few channels."""
    channels = [len(b.residual[f"{norm}.weight"]) for b in blocks for norm in ("norm1", "norm2")]
    found = {min(GROUPS, count // LEAST_OF_GROUP) for count in channels}
    if len(found) != 1:
        raise ModelError(f"{place}: norms of {sorted(found)} groups; a UNet2DModel has one number of them")
    return found.pop()


def _blocks(weights: Weights, prefix: str, asked: Asked) -> list[Block]:
    return [_block(weights, f"{prefix}{i}", asked) for i in weights.numbers(prefix)]


def _block(weights: Weights, name: str, asked: Asked) -> Block:
    residual: dict[str, Tensor] = {}
    for ours, theirs in RESIDUAL.items():
        residual |= named(ours, weights.layer(f"{name}.{theirs}"))
    if f"{name}.skip.weight" in weights:
        residual |= named("conv_shortcut", weights.layer(f"{name}.skip"))
    if f"{name}.qkv.weight" not in weights:
        return Block(residual)
    attention = named("group_norm", weights.layer(f"{name}.norm2"))
    qkv = weights.layer(f"{name}.qkv", flat=True)
    for kind, value in qkv.items():
        # Query, key and value of a channel stand together.
        cut = value.reshape(-1, 3, *value.shape[1:])
        attention |= {f"to_{part}.{kind}": cut[:, i] for i, part in enumerate("qkv")}
    attention |= named("to_out.0", weights.layer(f"{name}.proj", flat=True))
    return Block(residual, attention, asked.head_width(len(qkv["bias"]) // 3, HEAD))
