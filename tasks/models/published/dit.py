"""DiT's own layout (2212.09748), which "Flow Matching in Latent Space" (2307.08698) publishes its transformers in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.published.network import Asked, Converted, named
from fewstep.tasks.models.published.time_told import told_thousandfold
from fewstep.tasks.models.published.weights import Weights

# Width of a head, by the width of a network.
HEADS = {384: 64, 768: 64, 1024: 64, 1152: 72}
# diffusers' time embedding of a DiT.
SHIFT = 1.0
POSITIONS = 1e-4


def is_dit(weights: Weights) -> bool:
    """Whether the names are a DiT's."""
    return "x_embedder.proj.weight" in weights


def convert_dit(weights: Weights, asked: Asked) -> Converted:
    """A DiTTransformer2DModel of the same function; the last row of labels is the null one.

    ModelError for networks that are told whole steps: diffusers' own sinusoids are others.
    """
    if asked.predicts != "flow":
        raise ModelError(
            "a DiT that predicts noise is told whole steps by other sinusoids than diffusers': its authors' are on the "
            "hub as facebook/DiT-XL-2-256"
        )
    width, channels, patch = weights.shape("x_embedder.proj.weight")[:3]
    blocks = len(weights.numbers("blocks."))
    labels = weights.take("y_embedder.embedding_table.weight")
    if len(labels) == 1:
        # Without labels: the one row is shown to all.
        labels = labels.repeat(2, 1)
    positions = weights.take("pos_embed")
    side = math.isqrt(positions.shape[1])
    head = asked.head_width(width, HEADS.get(width))
    arguments = {
        "sample_size": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": weights.shape("final_layer.linear.weight")[0] // patch**2,
        "num_layers": blocks,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "num_embeds_ada_norm": len(labels) - 1,
        "norm_eps": 1e-6,
    }
    _check_positions(positions, width, side, weights.place)
    first = told_thousandfold(weights.take("t_embedder.mlp.0.weight"), SHIFT)
    time = {"linear_1.weight": first, "linear_1.bias": weights.take("t_embedder.mlp.0.bias")}
    time |= named("linear_2", weights.layer("t_embedder.mlp.2"))
    found = named("pos_embed.proj", weights.layer("x_embedder.proj"))
    for i in range(blocks):
        theirs, ours = f"blocks.{i}", f"transformer_blocks.{i}"
        found |= named(f"{ours}.norm1.emb.timestep_embedder", time)
        found[f"{ours}.norm1.emb.class_embedder.embedding_table.weight"] = labels
        found |= named(f"{ours}.norm1.linear", weights.layer(f"{theirs}.adaLN_modulation.1"))
        for name, value in weights.layer(f"{theirs}.attn.qkv").items():
            found |= {f"{ours}.attn1.to_{part}.{name}": v for part, v in zip("qkv", value.chunk(3), strict=True)}
        found |= named(f"{ours}.attn1.to_out.0", weights.layer(f"{theirs}.attn.proj"))
        found |= named(f"{ours}.ff.net.0.proj", weights.layer(f"{theirs}.mlp.fc1"))
        found |= named(f"{ours}.ff.net.2", weights.layer(f"{theirs}.mlp.fc2"))
    found |= named("proj_out_1", weights.layer("final_layer.adaLN_modulation.1"))
    found |= named("proj_out_2", weights.layer("final_layer.linear"))
    return Converted("transformer", arguments, found)


def _check_positions(positions: Tensor, width: int, side: int, place: str) -> None:
    """ModelError where they are not the sinusoids that diffusers makes."""
    expected = _positions(width, side)
    if positions.shape[1:] != expected.shape or float((positions[0].double() - expected).abs().max()) > POSITIONS:
        raise ModelError(f"{place}: pos_embed are no sinusoids of a square of patches, which a DiT's are")


def _positions(width: int, side: int) -> Any:
    """(side^2, width): sines and cosines of the column in the first half, of the row in the second."""
    rates = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, columns = np.divmod(np.arange(side**2), side)
    waves = [wave(np.outer(place, rates)) for place in (columns, rows) for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(waves, 1))
