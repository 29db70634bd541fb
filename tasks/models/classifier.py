"""The small image classifier whose features measure the zoo's models.

Shapes: images (N, C, H, W) in [-1, 1]; features (N, D); logits (N, K).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import ModelError
from fewstep.files import read_json
from fewstep.tasks.models.finite import check_finite

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class SmallClassifier(nn.Module):
    """Three convolutions, one hidden layer of `feature_dim` units (the features), one linear head."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 32, feature_dim: int = 32) -> None:
        super().__init__()
        self.config = {
            "channels": channels,
            "size": size,
            "classes": classes,
            "width": width,
            "feature_dim": feature_dim,
        }
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Flatten(),
        )
        side = (size + 3) // 4
        self.hidden = nn.Linear(2 * width * side * side, feature_dim)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(feature_dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) before the last non-linearity, so that they spread like a Gaussian mixture."""
        return torch.as_tensor(self.hidden(self.body(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (N, K)."""
        return torch.as_tensor(self.head(self.dropout(nn.functional.silu(self.features(images)))))

    def save(self, folder: Path) -> None:
        """Write the configuration and the weights as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n")
        save_file(self.state_dict(), folder / WEIGHTS_FILE)


def load_classifier(folder: Path, device: str = "cpu") -> SmallClassifier:
    """Load what `SmallClassifier.save` wrote, in evaluation mode.

    Raises ModelError where a file is missing or does not fit.
    """
    try:
        config = read_json(folder / CONFIG_FILE, error=ModelError)
        model = SmallClassifier(**config)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (ModelError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"no usable classifier in {folder}: {error}") from error
    check_finite(model, folder)
    return model.eval().requires_grad_(False).to(device)
