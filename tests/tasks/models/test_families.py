"""The tiny pipelines that other tests stand on: each runs by itself, is a function of its noise, and loads again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

NAMES = [
    "animatediff",
    "cogvideox",
    "controlnet",
    "ddim",
    "ddpm",
    "ddpm_learned_variance",
    "dit",
    "flux",
    "kandinsky",
    "lcm",
    "ldm",
    "pixart_sigma",
    "sana",
    "sd",
    "sd3",
    "sd_img2img",
    "sd_inpaint",
    "sd_inpaint_plain",
    "sd_v",
    "sd_zero_snr",
    "sdxl",
    "wan",
]


def test_every_family_is_tried(families: Any) -> None:
    assert sorted(families.FAMILIES) == NAMES


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("name", NAMES)
def test_a_family_runs_with_its_own_scheduler_and_loads_again(
    name: str, families: Any, family_folder: Callable[[str], Path]
) -> None:
    family, pipe = families.FAMILIES[name], families.build(name)
    calls: list[int] = []
    getattr(pipe, family.network).register_forward_hook(lambda *_: calls.append(1))
    made = families.run(family, pipe, 2)
    assert len(made) == 2
    assert np.isfinite(made).all()
    assert made.std() > 0.01
    assert calls
    if family.latents is not None:
        noise = torch.randn(family.latents, generator=torch.Generator().manual_seed(5))
        again, other = (families.run(family, pipe, 2, latents=x.clone()) for x in (noise, -noise))
        assert np.abs(again - other).max() > 1e-3
    if family.needs_accelerate and importlib.util.find_spec("accelerate") is None:
        return
    loaded = DiffusionPipeline.from_pretrained(str(family_folder(name)))
    assert type(loaded) is type(pipe)
    np.testing.assert_allclose(families.run(family, loaded, 2), made, atol=1e-5)
