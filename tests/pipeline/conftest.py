"""A toy model for tests of the machinery: real files, real sampling, random weights, milliseconds a call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewstep.tasks.models.files import ZOO


def make_toy_model(folder: Path) -> Path:
    """A diffusers pipeline directory on 8x8 grey images, with the bundled classifier and reference."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=2,
            add_attention=False,
        )
    network.save_pretrained(str(folder / "unet"))
    DDPMScheduler(num_train_timesteps=1000, clip_sample=False).save_pretrained(str(folder / "scheduler"))
    shutil.copytree(ZOO / "digits-ddpm" / "classifier", folder / "classifier")
    shutil.copy(ZOO / "digits-ddpm" / "reference.npz", folder / "reference.npz")
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the toy model."""
    return make_toy_model(tmp_path_factory.mktemp("models") / "toy")
