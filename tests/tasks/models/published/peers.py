"""The published layouts as functions of a table of weights, by the names that they have there.

Each follows the paper's description. A weight is drawn where it is first asked for, so that one call fills the table.
Shapes: x (B, C, H, W), time (B,) as the network is told it, label (B,) or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


class Table(dict[str, Tensor]):
    """Weights by name."""

    def __init__(self) -> None:
        super().__init__()
        self._draw = torch.Generator().manual_seed(0)

    def get_or_draw(self, name: str, *shape: int) -> Tensor:
        """One of that shape, of the size that training gives."""
        if name not in self:
            spread = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            self[name] = spread * torch.randn(shape, generator=self._draw)
        return self[name]

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        """Of the last dimension."""
        weight = self.get_or_draw(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.get_or_draw(f"{name}.bias", out) if bias else None)

    def conv(self, name: str, x: Tensor, out: int, size: int = 3, stride: int = 1, line: bool = False) -> Tensor:
        """That keeps the side; `line`: stored as one over positions."""
        shape = (1,) if line else (size, size)
        weight = self.get_or_draw(f"{name}.weight", out, x.shape[1], *shape).reshape(out, -1, size, size)
        return F.conv2d(x, weight, self.get_or_draw(f"{name}.bias", out), stride, size // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Of 32 groups, with weights around 1."""
        count = x.shape[1]
        if f"{name}.weight" not in self:
            self[f"{name}.weight"] = 1 + 0.1 * torch.randn(count, generator=self._draw)
        return F.group_norm(x, 32, self[f"{name}.weight"], self.get_or_draw(f"{name}.bias", count), 1e-5)


def waves(time: Tensor, count: int) -> Tensor:
    """Cosines and sines (B, count) of times."""
    rates = torch.tensor([10_000.0 ** (-i / (count // 2)) for i in range(count // 2)])
    return torch.cat([torch.cos(time[:, None] * rates), torch.sin(time[:, None] * rates)], 1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of (B, heads, channels, positions)."""
    weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(q.shape[2]), -1)
    return v @ weights.transpose(2, 3)


def dit(table: Table, x: Tensor, time: Tensor, label: Tensor, rows: int) -> Tensor:
    """DiT of 2 x 64 with 4 heads on patches of 2 (2212.09748, figure 3)."""
    width, heads, patch, count, side = 64, 4, 2, len(x), x.shape[-1] // 2
    weight = table.get_or_draw("x_embedder.proj.weight", width, x.shape[1], patch, patch)
    tokens = F.conv2d(x, weight, table.get_or_draw("x_embedder.proj.bias", width), patch).flatten(2).transpose(1, 2)
    tokens = tokens + table.setdefault("pos_embed", _places(side, width))
    told = table.linear("t_embedder.mlp.2", F.silu(table.linear("t_embedder.mlp.0", waves(time, 256), width)), width)
    told = F.silu(told + table.get_or_draw("y_embedder.embedding_table.weight", rows, width)[label])[:, None]

    def seen(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift

    for i in range(2):
        name = f"blocks.{i}"
        a, b, c, d, e, f = table.linear(f"{name}.adaLN_modulation.1", told, 6 * width).chunk(6, -1)
        q, k, v = table.linear(f"{name}.attn.qkv", seen(tokens, a, b), 3 * width).unflatten(2, (3, heads, -1)).unbind(2)
        mixed = attend(*(part.permute(0, 2, 3, 1) for part in (q, k, v))).flatten(1, 2).transpose(1, 2)
        tokens = tokens + c * table.linear(f"{name}.attn.proj", mixed, width)
        hidden = F.gelu(table.linear(f"{name}.mlp.fc1", seen(tokens, d, e), 4 * width), approximate="tanh")
        tokens = tokens + f * table.linear(f"{name}.mlp.fc2", hidden, width)
    a, b = table.linear("final_layer.adaLN_modulation.1", told, 2 * width).chunk(2, -1)
    made = table.linear("final_layer.linear", seen(tokens, a, b), patch * patch * x.shape[1])
    made = made.reshape(count, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return made.reshape(count, -1, *x.shape[2:])


def _places(side: int, width: int) -> Tensor:
    table = torch.zeros(1, side * side, width)
    for place in range(side * side):
        for half, at in enumerate((place % side, place // side)):
            for i in range(width // 4):
                angle, first = at / 10_000 ** (4 * i / width), half * width // 2 + i
                table[0, place, first], table[0, place, first + width // 4] = math.sin(angle), math.cos(angle)
    return table


def _residual(
    table: Table,
    names: tuple[str, ...],
    x: Tensor,
    told: Tensor,
    out: int,
    shifted: bool,
    move: Callable[[Tensor], Tensor],
) -> Tensor:
    """A residual block: norm, move, convolution, time, norm, convolution (2105.05233, section 3)."""
    first, before, time, second, after, skip = names
    h = table.conv(before, move(F.silu(table.norm(first, x))), out)
    told = table.linear(time, told, (1 + shifted) * out)[:, :, None, None]
    if shifted:
        scale, shift = told.chunk(2, 1)
        h = table.norm(second, h) * (1 + scale) + shift
    else:
        h = table.norm(second, h + told)
    x = move(x)
    return table.conv(after, F.silu(h), out) + (x if x.shape[1] == out else table.conv(skip, x, out, 1))


def _stay(x: Tensor) -> Tensor:
    return x


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def guided(
    table: Table, x: Tensor, time: Tensor, label: Tensor | None, outputs: int, shifted: bool, moved: bool, order: str
) -> Tensor:
    """guided-diffusion's UNet of two levels of 32 and 64, one block each, attention of heads of 16 at the second."""
    width, head = 32, 16
    told = table.linear("time_embed.2", F.silu(table.linear("time_embed.0", waves(time, width), 4 * width)), 4 * width)
    if label is not None:
        told = told + table.get_or_draw("label_emb.weight", 5, 4 * width)[label]
    told = F.silu(told)

    def block(name: str, x: Tensor, out: int, move: Callable[[Tensor], Tensor] = _stay) -> Tensor:
        parts = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
        return _residual(table, tuple(f"{name}.{part}" for part in parts), x, told, out, shifted, move)

    def attention(name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        qkv = table.conv(f"{name}.qkv", table.norm(f"{name}.norm", x), 3 * channels, 1, line=True).flatten(2)
        if order == "legacy":
            q, k, v = qkv.unflatten(1, (channels // head, 3, head)).unbind(2)
        else:
            q, k, v = qkv.unflatten(1, (3, channels // head, head)).unbind(1)
        return x + table.conv(f"{name}.proj_out", attend(q, k, v).reshape(x.shape), channels, 1, line=True)

    skips = [table.conv("input_blocks.0.0", x, width)]
    skips.append(block("input_blocks.1.0", skips[-1], width))
    if moved:
        skips.append(block("input_blocks.2.0", skips[-1], width, _halved))
    else:
        skips.append(table.conv("input_blocks.2.0.op", skips[-1], width, stride=2))
    skips.append(attention("input_blocks.3.1", block("input_blocks.3.0", skips[-1], 2 * width)))
    h = attention("middle_block.1", block("middle_block.0", skips[-1], 2 * width))
    h = block("middle_block.2", h, 2 * width)
    for i in range(4):
        out = (2 if i < 2 else 1) * width
        h = block(f"output_blocks.{i}.0", torch.cat([h, skips.pop()], 1), out)
        if i < 2:
            h = attention(f"output_blocks.{i}.1", h)
        if i == 1:
            name = "output_blocks.1.2"
            h = block(name, h, out, _doubled) if moved else table.conv(f"{name}.conv", _doubled(h), out)
    return table.conv("out.2", F.silu(table.norm("out.0", h)), outputs)


def edm(table: Table, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    """The ADM UNet of EDM's program: two levels of 128, one block each, attention of heads of 64 at the second."""
    width, side = 128, x.shape[-1]
    told = table.linear("map_layer1", F.silu(table.linear("map_layer0", waves(time, width), 4 * width)), 4 * width)
    if label is not None:
        told = told + table.linear("map_label", F.one_hot(label, 5).float(), 4 * width, bias=False)
    told = F.silu(told)

    def block(name: str, x: Tensor, attends: bool = False, move: Callable[[Tensor], Tensor] = _stay) -> Tensor:
        parts = ("norm0", "conv0", "affine", "norm1", "conv1", "skip")
        if move is not _stay:
            for part in ("conv0", "skip"):
                table[f"{name}.{part}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        x = _residual(table, tuple(f"{name}.{part}" for part in parts), x, told, width, True, move)
        if not attends:
            return x
        qkv = table.conv(f"{name}.qkv", table.norm(f"{name}.norm2", x), 3 * width, 1)
        q, k, v = qkv.flatten(2).unflatten(1, (width // 64, 64, 3)).unbind(3)
        return x + table.conv(f"{name}.proj", attend(q, k, v).reshape(x.shape), width, 1)

    high, low = f"{side}x{side}", f"{side // 2}x{side // 2}"
    skips = [table.conv(f"enc.{high}_conv", x, width)]
    skips.append(block(f"enc.{high}_block0", skips[-1]))
    skips.append(block(f"enc.{low}_down", skips[-1], move=_halved))
    skips.append(block(f"enc.{low}_block0", skips[-1], True))
    h = block(f"dec.{low}_in1", block(f"dec.{low}_in0", skips[-1], True))
    for i in range(2):
        h = block(f"dec.{low}_block{i}", torch.cat([h, skips.pop()], 1), True)
    h = block(f"dec.{high}_up", h, move=_doubled)
    for i in range(2):
        h = block(f"dec.{high}_block{i}", torch.cat([h, skips.pop()], 1))
    return table.conv("out_conv", F.silu(table.norm("out_norm", h)), x.shape[1])
