"""The judge of an edit's success: a classifier of images that has no part in the edit, nor in the features.

It differs from the classifier beside a model in width, features and seed, sees none of the report's images, and is
kept by content, with its accuracy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.files import read_json
from fewstep.tasks.data import Dataset
from fewstep.tasks.models.classifier import CONFIG_FILE, SmallClassifier, load_classifier
from fewstep.tasks.models.judge import JudgeNetwork, find_judge
from fewstep.tasks.models.judge import load_judge as load_bundled
from fewstep.tasks.training.classifier import accuracy, train_classifier
from fewstep.tasks.training.judge import CARD_FILE
from fewstep.tasks.training.recipe import TrainingRecipe

WIDTH, FEATURES, STEPS, BATCH, SEED = 24, 48, 2500, 128, 1009
ACCURACY_FILE = "accuracy.json"


@dataclass(frozen=True)
class Judge:
    """A classifier of images, and its accuracy on images that it has not seen."""

    network: SmallClassifier | JudgeNetwork
    accuracy: float

    @torch.inference_mode()
    def labels(self, images: Tensor) -> Tensor:
        """The most likely class (N,) of images (N, C, H, W) in [-1, 1]."""
        config = self.network.config
        expected = (config["channels"], config["size"], config["size"])
        if tuple(images.shape[1:]) != expected:
            raise ConfigurationError(
                f"the judge takes {expected[0]}x{expected[1]}x{expected[2]} images, got {tuple(images.shape[1:])}: "
                "give images of the size it was trained on"
            )
        device = next(self.network.parameters()).device
        parts = [self.network(part.to(device)).argmax(1).cpu() for part in torch.split(images, 500)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def load_judge(seen: Dataset, unseen: Dataset, cache: Path, device: str, steps: int = STEPS) -> Judge:
    """The judge for a data set, from the cache or trained now on `seen`; its accuracy is that on `unseen`."""
    digest = hashlib.sha256(seen.images.tobytes() + seen.labels.tobytes())
    digest.update(f"{WIDTH} {FEATURES} {steps} {BATCH} {SEED}".encode())
    folder = cache / f"judge-{seen.name}-{digest.hexdigest()[:16]}"
    if (folder / ACCURACY_FILE).is_file():
        return Judge(load_classifier(folder, device), float(read_json(folder / ACCURACY_FILE)))
    recipe = TrainingRecipe(
        name="judge",
        dataset=seen.name,
        unet={},
        steps=1,
        batch=BATCH,
        seed=SEED,
        classifier_width=WIDTH,
        classifier_steps=steps,
        feature_dim=FEATURES,
    )
    network = train_classifier(recipe, seen, device)
    network.save(folder)
    found = accuracy(network, unseen, device)
    # Last: without it the folder is not finished.
    (folder / ACCURACY_FILE).write_text(json.dumps(found) + "\n")
    return Judge(network, found)


def load_own_judge(judge: str, device: str) -> Judge:
    """A bundled judge by name, or a saved classifier of either kind by folder; NaN where its accuracy is not known.

    ConfigurationError or ModelError where it is not there or does not load.
    """
    folder = find_judge(judge)
    card = folder / CARD_FILE
    try:
        known = float(read_json(card, error=ModelError)["accuracy"]) if card.is_file() else float("nan")
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"{card} does not say the judge's accuracy: write it as a number, or remove the file"
        ) from None
    small = "feature_dim" in read_json(folder / CONFIG_FILE, error=ModelError)
    return Judge(load_classifier(folder, device) if small else load_bundled(judge, device=device), known)
