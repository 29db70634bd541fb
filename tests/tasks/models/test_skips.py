"""Skip coefficients: exactly the skip tensors, only for as long as they are asked for, on any diffusers UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.skips import attach_skips, scaled_skips, skip_count


@pytest.fixture(scope="module")
def unets(tiny_ddpm: Path, tiny_stable_diffusion: Path) -> dict[str, tuple[Any, Any]]:
    """Networks and how to call them."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    plain = UNet2DModel.from_pretrained(str(tiny_ddpm / "unet")).eval()
    prompted = UNet2DConditionModel.from_pretrained(str(tiny_stable_diffusion / "unet")).eval()
    return {
        "UNet2DModel": (plain, lambda: plain(x, torch.tensor(7.5)).sample),
        "UNet2DConditionModel": (prompted, lambda: prompted(z, torch.tensor(7.5), text).sample),
    }


KINDS = ("UNet2DModel", "UNet2DConditionModel")


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_factors_of_one_change_nothing_and_others_do_only_inside(kind: str, unets: Any) -> None:
    unet, call = unets[kind]
    before = call()
    with scaled_skips(unet, [1.0] * skip_count(unet)):
        assert torch.equal(call(), before)
    for k in range(skip_count(unet)):
        factors = [1.0] * skip_count(unet)
        factors[k] = 0.5
        with scaled_skips(unet, factors):
            assert not torch.equal(call(), before)
    assert torch.equal(call(), before)
    with scaled_skips(unet, []):
        assert torch.equal(call(), before)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_first_factor_scales_the_first_concatenated_tensor(kind: str, unets: Any) -> None:
    unet, call = unets[kind]
    resnets = [resnet for block in unet.up_blocks for resnet in block.resnets]

    def seen(factors: list[float]) -> list[Tensor]:
        """What each up-resnet is shown last: the skip half of its input."""
        shown: list[Tensor] = []
        widths = [skip_width(unet, k) for k in range(len(resnets))]
        handles = [
            resnet.register_forward_pre_hook(lambda _, args, w=w: shown.append(args[0][:, -w:].clone()))
            for resnet, w in zip(resnets, widths, strict=True)
        ]
        with scaled_skips(unet, factors):
            call()
        for handle in handles:
            handle.remove()
        return shown

    plain = seen([])
    factors = [0.25 + 0.25 * k for k in range(len(resnets))]
    for factor, before, after in zip(factors, plain, seen(factors), strict=True):
        torch.testing.assert_close(after, factor * before, rtol=1e-6, atol=1e-6)


def skip_width(unet: Any, k: int) -> int:
    """Channels of the k-th concatenated skip tensor: the encoder's outputs from the last to the first."""
    channels = unet.config.block_out_channels
    widths = [channels[0]]
    for i, width in enumerate(channels):
        widths += [width] * (unet.config.layers_per_block + (i + 1 < len(channels)))
    return int(widths[::-1][k])


@torch.inference_mode()
def test_attached_for_good_until_removed(unets: Any) -> None:
    unet, call = unets["UNet2DModel"]
    before = call()
    handles = attach_skips(unet, [0.5] * skip_count(unet))
    changed = call()
    assert not torch.equal(changed, before)
    with scaled_skips(unet, [2.0] * skip_count(unet)):
        torch.testing.assert_close(call(), before, rtol=0, atol=1e-5)
    for handle in handles:
        handle.remove()
    assert torch.equal(call(), before)


def test_an_error_inside_takes_the_hooks_off(unets: Any) -> None:
    unet, _ = unets["UNet2DModel"]
    with pytest.raises(RuntimeError), scaled_skips(unet, [0.5] * skip_count(unet)):
        raise RuntimeError
    assert not any(block._forward_pre_hooks for block in unet.up_blocks)


def test_the_count_is_known_from_the_files_and_another_is_refused(tiny_ddpm: Path, unets: Any) -> None:
    unet, _ = unets["UNet2DModel"]
    files = find_model(str(tiny_ddpm))
    assert files.skips == skip_count(unet) == 4
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigurationError, match="3 skip coefficients, but the network concatenates 4"):
        Denoiser(files).on([0], skips=[1.0, 1.0, 1.0])(x, 3.0)
