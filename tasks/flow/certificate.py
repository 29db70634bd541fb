"""Upper bounds of the Lipschitz constants of diffusers' decoders and UNets: products of their layers' norms.

They hold at all inputs, labels and times (up to the rounding of float64), and are far above what any data see: a
group norm may magnify by max |gamma| / sqrt(eps), a thousand times, where its input is constant, and every one of
them is counted with that.

- Convolution: zero padding restricts a convolution on the whole plane, whose norm is the largest singular value of
  the kernel's Fourier transform over all frequencies. Between the N^2 frequencies that are looked at, a trigonometric
  polynomial of degree k is at most 1 / cos(pi k / N) greater in each variable (Ehlich & Zeller 1964). A stride leaves
  outputs out.
- Group norm: its Jacobian is diag(gamma) / sqrt(var + eps) times a matrix of norm at most 1. Its output has at most
  the norm max |gamma| sqrt(entries) + |beta| a token, on which the next lines rest: attention has no Lipschitz
  constant on all of space (Kim et al., 2006.04710).
- Attention of a head, out_i = sum_j p_ij v_j over N tokens: with |W_q x| <= B_q, and so for k and v,
  |d out| <= (sqrt(N) |W_v| + B_v (B_k |W_q| + sqrt(N) B_q' |W_k|) / sqrt(d)) |dx|. The first part is P dV, a
  row-stochastic P having norm at most sqrt(N); the second is the covariance of V and the change of the logits under
  p_i, at most B_v times the root mean square of the latter. Biases of k and v cancel in a covariance; B_q' counts
  that of q.
- Skips: the constant of a concatenation is the root of the sum of squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ModelError

GRID = 32
# The greatest slope of x sigmoid(x) is 1.09984 (at x = 2.39936).
SILU = 1.0999
_BLOCKS = {
    "DownBlock2D",
    "AttnDownBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "UNetMidBlock2D",
    "UpDecoderBlock2D",
    "AttnUpDecoderBlock2D",
}


@torch.no_grad()
def decoder_constant(vae: Any, side: int) -> float:
    """Upper bound of the Lipschitz constant of an AutoencoderKL's decoder on latents of that side, in the flow's scale.

    ModelError where a layer has no known bound.
    """
    decoder = vae.decoder
    L = 1.0 / float(vae.config.scaling_factor)
    if getattr(vae, "post_quant_conv", None) is not None:
        L *= convolution(vae.post_quant_conv)
    L *= convolution(decoder.conv_in)
    L = _middle(decoder.mid_block, L, side)
    for block in decoder.up_blocks:
        _check(block)
        for resnet, attention in _layers(block):
            L = _pair(resnet, attention, L, side)
        L, side = _up(block, L, side)
    return L * _norm(decoder.conv_norm_out) * _activation(decoder.conv_act) * convolution(decoder.conv_out)


@torch.no_grad()
def unet_constant(network: Any, side: int) -> float:
    """Upper bound of the Lipschitz constant of a UNet2DModel in its input, at any time and label.

    ModelError where a layer has no known bound, as for other networks.
    """
    if type(network).__name__ != "UNet2DModel":
        raise ModelError(f"no certificate for {type(network).__name__}: only for UNet2DModel")
    if network.config.time_embedding_type == "fourier":
        raise ModelError("no certificate for a UNet2DModel that divides by the time (fourier)")
    L = convolution(network.conv_in) * (2.0 if network.config.center_input_sample else 1.0)
    skips = [L]
    for block in network.down_blocks:
        _check(block)
        for resnet, attention in _layers(block):
            L = _pair(resnet, attention, L, side)
            skips.append(L)
        for layer in block.downsamplers or ():
            L, side = L * _halving(layer), (side + 1) // 2
            skips.append(L)
    if network.mid_block is not None:
        L = _middle(network.mid_block, L, side)
    for block in network.up_blocks:
        _check(block)
        for resnet, attention in _layers(block):
            L = _pair(resnet, attention, math.hypot(L, skips.pop()), side)
        L, side = _up(block, L, side)
    return L * _norm(network.conv_norm_out) * _activation(network.conv_act) * convolution(network.conv_out)


def convolution(layer: nn.Conv2d) -> float:
    """Upper bound of the norm of a convolution with zero padding, on images of any size."""
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and set(layer.dilation) == {1}
    if not plain:
        raise ModelError(f"no certificate for {layer}: only for plain convolutions")
    kernel = layer.weight.detach().double().cpu()
    frequencies = torch.fft.rfft2(kernel, s=(GRID, GRID)).permute(2, 3, 0, 1)
    between = math.prod(math.cos(math.pi * (size // 2) / GRID) for size in kernel.shape[2:])
    return float(torch.linalg.matrix_norm(frequencies, 2).max()) / between


def attention_constant(layer: Any, tokens: int) -> float:
    """Upper bound for a diffusers Attention over that many tokens, its group norm and residual included."""
    plain = layer.group_norm is not None and all(
        getattr(layer, name, None) is None for name in ("spatial_norm", "norm_q", "norm_k")
    )
    if not plain:
        raise ModelError("no certificate for attention without a group norm before it, or with norms within it")
    norm = layer.group_norm
    # In the worst case all of a group's energy lies in one token.
    token = float(norm.weight.abs().max()) * math.sqrt(norm.num_channels * tokens) + float(norm.bias.norm())
    W = {name: getattr(layer, f"to_{name}").weight.detach().double().cpu().chunk(layer.heads) for name in "qkv"}
    bias = layer.to_q.bias
    biases = [0.0] * layer.heads if bias is None else [float(b.norm()) for b in bias.chunk(layer.heads)]
    root, squares = math.sqrt(tokens), 0.0
    for q, k, v, b in zip(W["q"], W["k"], W["v"], biases, strict=True):
        Q, K, V = _largest(q), _largest(k), _largest(v)
        logits = (K * token * Q + root * (Q * token + b) * K) / math.sqrt(len(q))
        squares += (root * V + V * token * logits) ** 2
    branch = _norm(norm) * math.sqrt(squares) * _largest(layer.to_out[0].weight.detach().double().cpu())
    return (branch + float(layer.residual_connection)) / float(layer.rescale_output_factor)


def resnet_constant(block: Any) -> float:
    """Upper bound for a ResnetBlock2D in its first input."""
    # What is added because of the time changes no difference; without any, every kind is the plain one.
    plain = (
        type(block).__name__ == "ResnetBlock2D"
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and not (block.up or block.down)
    )
    if not plain:
        raise ModelError("no certificate for a residual block that scales by the time or changes the size")
    act = _activation(block.nonlinearity)
    branch = _norm(block.norm1) * act * convolution(block.conv1) * _norm(block.norm2) * act * convolution(block.conv2)
    shortcut = 1.0 if block.conv_shortcut is None else convolution(block.conv_shortcut)
    return float((shortcut + branch) / block.output_scale_factor)


def _layers(block: Any) -> Iterable[tuple[Any, Any]]:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return zip(block.resnets, attentions, strict=True)


def _pair(resnet: Any, attention: Any, L: float, side: int) -> float:
    L *= resnet_constant(resnet)
    return L if attention is None else L * attention_constant(attention, side * side)


def _middle(block: Any, L: float, side: int) -> float:
    _check(block)
    first, *others = block.resnets
    L *= resnet_constant(first)
    for attention, resnet in zip(block.attentions, others, strict=True):
        L *= (1.0 if attention is None else attention_constant(attention, side * side)) * resnet_constant(resnet)
    return L


def _up(block: Any, L: float, side: int) -> tuple[float, int]:
    for layer in block.upsamplers or ():
        plain = type(layer).__name__ == "Upsample2D" and layer.norm is None and not layer.use_conv_transpose
        if not plain or not layer.interpolate:
            raise ModelError(f"no certificate for {type(layer).__name__} other than nearest neighbours")
        # Every pixel is there four times.
        L, side = L * 2.0 * (convolution(layer.conv) if layer.use_conv else 1.0), 2 * side
    return L, side


def _halving(layer: Any) -> float:
    if type(layer).__name__ != "Downsample2D" or layer.norm is not None:
        raise ModelError(f"no certificate for {type(layer).__name__}: only for Downsample2D without a norm")
    # Without a convolution, means of four pixels.
    return convolution(layer.conv) if layer.use_conv else 0.5


def _check(block: Any) -> None:
    if type(block).__name__ not in _BLOCKS:
        raise ModelError(f"no certificate for {type(block).__name__}: known are {', '.join(sorted(_BLOCKS))}")


def _norm(layer: Any) -> float:
    if not isinstance(layer, nn.GroupNorm):
        raise ModelError(f"no certificate for {type(layer).__name__}: only for GroupNorm")
    return float(layer.weight.abs().max()) / math.sqrt(layer.eps)


def _activation(layer: Any) -> float:
    if not isinstance(layer, nn.SiLU):
        raise ModelError(f"no certificate for {type(layer).__name__}: only for SiLU")
    return SILU


def _largest(W: Tensor) -> float:
    return float(torch.linalg.matrix_norm(W, 2))
