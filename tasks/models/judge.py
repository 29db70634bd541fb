"""The judge: a classifier of images that had no part in the features, and says what an image shows.

A small residual network with batch normalisation and global pooling (He et al., 1512.03385), so that it differs from
`SmallClassifier`, whose features measure the Frechet distance, in architecture, training and seed.

Shapes: images (N, C, H, W) in [-1, 1]; logits (N, K); labels (N,).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, ModelError
from fewstep.files import read_json
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.finite import check_finite

JUDGES = Path(__file__).parent / "zoo" / "judges"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
BATCH = 250


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = stride == 1 and channels == width
        self.beside = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.beside(x))


class JudgeNetwork(nn.Module):
    """A stem and three residual blocks of `width`, 2 `width` and 4 `width` channels, the last two halving the image."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.config = {"channels": channels, "size": size, "classes": classes, "width": width}
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (N, K)."""
        return torch.as_tensor(self.head(self.body(images).mean(dim=(2, 3))))

    @torch.inference_mode()
    def labels(self, images: Tensor) -> Tensor:
        """The most likely class (N,) of images (N, C, H, W), on the CPU; the network must be in evaluation mode."""
        return torch.cat([self(part).argmax(1).cpu() for part in torch.split(images, BATCH)])

    def save(self, folder: Path) -> None:
        """Write the configuration and the weights as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n")
        save_file(self.state_dict(), folder / WEIGHTS_FILE)


def bundled_judges() -> list[str]:
    """Their names."""
    return sorted(p.parent.name for p in JUDGES.glob(f"*/{CONFIG_FILE}"))


def is_judge(judge: str) -> bool:
    """Whether it is a bundled judge's name, or a folder with a classifier's configuration."""
    return bool(judge) and any((folder / CONFIG_FILE).is_file() for folder in (JUDGES / judge, Path(judge)))


def find_judge(judge: str) -> Path:
    """The folder of a bundled judge or of one's own; ConfigurationError names the bundled ones."""
    folder = JUDGES / judge if (JUDGES / judge / CONFIG_FILE).is_file() else Path(judge)
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigurationError(
            f"no judge {judge!r}: give one of {', '.join(bundled_judges()) or '(none bundled)'}, or a folder that "
            "`fewstep train` made"
        )
    return folder


def judge_hash(judge: str) -> str:
    """Content address of a judge: 16 hex digits."""
    return hashlib.sha256((find_judge(judge) / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def load_judge(judge: str, files: ModelFiles | None = None, device: str = "cpu") -> JudgeNetwork:
    """A judge by name or folder, in evaluation mode, for the images and labels of a model where one is given.

    Raises ModelError where it does not load, ConfigurationError where it does not fit the model.
    """
    folder = find_judge(judge)
    try:
        model = JudgeNetwork(**read_json(folder / CONFIG_FILE, error=ModelError))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (ModelError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"no usable judge in {folder}: {error}") from error
    check_finite(model, folder)
    if files is not None:
        judged = tuple(model.config[name] for name in ("channels", "size", "classes"))
        made = files.channels, files.size, files.classes
        if judged != made:
            raise ConfigurationError(
                f"judge {judge!r} knows {judged[2]} classes of {judged[0]}x{judged[1]} images; model {files.name} "
                f"makes {made[2]} classes of {made[0]}x{made[1]}: train one on the model's data"
            )
    return model.eval().requires_grad_(False).to(device)
