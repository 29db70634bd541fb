"""For tests of the machinery: a toy model (real files, real sampling, random weights), and the command line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fewstep.pipeline import cli
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


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object it printed."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)

    def refused(self, *words: object) -> None:
        """One line that starts with `error:` and holds the words; exit code 2."""
        assert self.code == 2, self
        assert self.out == "", self.out
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        for word in words:
            assert str(word) in line


@pytest.fixture(scope="session")
def answer_type() -> type[Answer]:
    """`Answer`, for tests that call the command line in their own way."""
    return Answer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        monkeypatch.setattr(cli.app, "registered_commands", [])  # main() registers them each time
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
