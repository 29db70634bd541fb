"""Certified constants against dense Jacobians and power iteration: never below, and exact where they can be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.tasks.flow.certificate import (
    attention_constant,
    convolution,
    decoder_constant,
    resnet_constant,
    unet_constant,
)
from fewstep.tasks.flow.lipschitz import singular_values


def dense(f: Any, x: Tensor) -> float:
    """The spectral norm of f's Jacobian at x."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        J = torch.autograd.functional.jacobian(f, x)
    return float(torch.linalg.matrix_norm(J.reshape(-1, x.numel()).double(), 2))


@pytest.fixture(scope="module")
def vae(tiny_stable_diffusion: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(str(tiny_stable_diffusion / "vae")).eval().requires_grad_(False)


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    asked: dict[str, Any] = {
        "in_channels": 2,
        "out_channels": 2,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "sample_size": 8,
    }
    torch.manual_seed(0)
    return UNet2DModel(**(asked | changes)).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolutions_norm_is_that_of_its_matrix(size: int, stride: int) -> None:
    """On a large image and without a stride close to it; never below."""
    torch.manual_seed(size)
    layer = nn.Conv2d(2, 3, size, stride, padding=size // 2).double()
    true = dense(lambda x: layer(x) - layer.bias[:, None, None], torch.zeros(1, 2, 12, 12, dtype=torch.float64))
    found = convolution(layer)
    assert true <= found * (1 + 1e-9)
    if stride == 1:
        assert found < (1.001 if size == 1 else 1.2) * true


def test_frequencies_between_the_grids_are_bounded() -> None:
    """A kernel that is greatest half-way between two frequencies of the grid."""
    layer = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    angle = math.pi * 5 / 32
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 1, 0], layer.weight[:, :, 1, 2], layer.weight[:, :, 1, 1] = turn, turn.T, torch.eye(2)
    assert 3 <= convolution(layer) < 3.1


@pytest.mark.parametrize("gain", [0.3, 3.0, 30.0])
def test_attention_stays_within_its_bound(gain: float) -> None:
    """From flat to hard softmax, at inputs of many sizes."""
    layer = unet().down_blocks[1].attentions[0].double()
    with torch.no_grad():
        for name in ("to_q", "to_k", "to_v"):
            getattr(layer, name).weight.mul_(gain)
    bound = attention_constant(layer, 9)
    g = torch.Generator().manual_seed(1)
    for size in (1e-3, 0.1, 1.0, 100.0):
        x = size * torch.randn(1, 16, 3, 3, dtype=torch.float64, generator=g)
        assert dense(layer, x) <= bound


def test_a_residual_blocks_bound_is_near_where_its_norms_see_hardly_any_variance() -> None:
    """At a constant input both norms do what the bound says of them, up to how directions meet."""
    block = unet().down_blocks[0].resnets[0].double()
    time = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.conv1.weight.mul_(1e-3)  # so that the second norm's input is as flat as its first's
        block.time_emb_proj.weight.zero_()
        block.time_emb_proj.bias.zero_()
    x = torch.zeros(1, 8, 4, 4, dtype=torch.float64)
    found, bound = dense(lambda y: block(y, time), x), resnet_constant(block)
    assert 1e-2 * bound < found <= bound


def test_networks_stay_within_their_bounds(vae: Any) -> None:
    g = torch.Generator().manual_seed(2)
    network = unet(num_class_embeds=4)
    x, label = torch.randn(3, 2, 8, 8, generator=g), torch.tensor([0, 1, 3])
    for t in (0.0, 500.0, 1000.0):
        found = singular_values(lambda y, t=t: network(y, t, label).sample, x, [0, 1, 2], 0, 10)
        assert float(found.max()) < unet_constant(network, 8)
    z = torch.randn(3, 4, 8, 8, generator=g)
    scale = vae.config.scaling_factor
    found = singular_values(lambda y: vae.decode(y / scale).sample, z, [0, 1, 2], 0, 10)
    assert float(found.max()) < decoder_constant(vae, 8)


def test_the_bound_follows_the_last_layer_and_counts_every_block() -> None:
    network = unet()
    before = unet_constant(network, 8)
    with torch.no_grad():
        network.conv_out.weight.mul_(3)
    assert unet_constant(network, 8) == pytest.approx(3 * before)
    with torch.no_grad():
        for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
            for layer in block.resnets:
                before = unet_constant(network, 8)
                layer.conv2.weight.mul_(2)
                assert unet_constant(network, 8) > before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "scales by the time"),
        ({"act_fn": "gelu"}, "only for SiLU"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}, "ResnetDownsampleBlock2D"),
    ],
)
def test_what_has_no_bound_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        unet_constant(unet(**changes), 8)


def test_other_networks_have_no_certificate() -> None:
    with pytest.raises(ModelError, match="only for UNet2DModel"):
        unet_constant(nn.Linear(2, 2), 8)
    with pytest.raises(ModelError, match="plain convolutions"):
        convolution(nn.Conv2d(4, 4, 3, groups=2))
