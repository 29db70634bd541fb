"""The kinds of judges that are no feature spaces: bundled and trained classifiers, and folders of `transformers`.

Shapes: images (N, C, H, W) in [-1, 1]; scores (N, K).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError
from fewstep.files import read_json
from fewstep.tasks.metrics._network import weights_hash
from fewstep.tasks.metrics.clip_score import ImagesAndTexts
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces import transformers
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.models.classifier import CONFIG_FILE, SmallClassifier, load_classifier
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.judge import JudgeNetwork, find_judge, is_judge
from fewstep.tasks.models.judge import load_judge as load_bundled
from fewstep.tasks.training.judge import CARD_FILE

BATCH = 500
HEAD = "ForImageClassification"
SEPARATE = "multi_label_classification"


class ClassifierScores:
    """Scores of a classifier of the project's own: log-odds of its classes up to a constant."""

    def __init__(self, network: SmallClassifier | JudgeNetwork, name: str, accuracy: float = float("nan")) -> None:
        self.network, self.name, self.accuracy = network, name, accuracy
        self.dim, self.hash = int(network.config["classes"]), weights_hash(network.state_dict())

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Array:
        """(N, K); ConfigurationError for images of another size than it was trained on."""
        config = self.network.config
        expected = (config["channels"], config["size"], config["size"])
        if tuple(images.shape[1:]) != expected:
            raise ConfigurationError(
                f"the judge takes {expected[0]}x{expected[1]}x{expected[2]} images, got {tuple(images.shape[1:])}: "
                "give images of the size it was trained on"
            )
        device = next(self.network.parameters()).device
        parts = [self.network(part.to(device)).double().cpu().numpy() for part in torch.split(images, BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim))


def _own(given: str, files: ModelFiles, device: str) -> ClassifierScores:
    folder = find_judge(given)
    card = folder / CARD_FILE
    try:
        known = float(read_json(card, error=ModelError)["accuracy"]) if card.is_file() else float("nan")
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"{card} does not say the judge's accuracy: write it as a number, or remove the file"
        ) from None
    small = "feature_dim" in read_json(folder / CONFIG_FILE, error=ModelError)
    network = load_classifier(folder, device) if small else load_bundled(given, device=device)
    expected = tuple(network.config[name] for name in ("channels", "size", "size"))
    if expected != (files.channels, files.size, files.size):
        raise ConfigurationError(
            f"the judge {given} takes {'x'.join(map(str, expected))} images, the model {files.name} makes "
            f"{files.channels}x{files.size}x{files.size}: give one that was trained on such images"
        )
    return ClassifierScores(network, folder.name, known)


class LabelledScores(NetworkFeatures):
    """Scores of a classifier whose labels have names; `separate`: each label is told for itself."""

    labels: tuple[str, ...] = ()
    separate = False


class ZeroShot:
    """A model that embeds images and texts: an image is what the nearest text says (Radford et al. 2021, section 3)."""

    def __init__(self, folder: Path, device: str) -> None:
        self._model = ImagesAndTexts(folder, device)
        self.name, self.dim, self.hash = folder.resolve().name, 0, self._model.hash

    def of(self, texts: Sequence[str]) -> FeatureExtractor:
        """Cosines (N, K) of images with K texts."""
        return TextScores(self._model, tuple(texts), self.name)

    def __call__(self, images: Tensor) -> Array:
        """Nothing, as long as no text is told."""
        return np.zeros((len(images), 0))


class TextScores:
    """Cosines of images with texts."""

    reads = True

    def __init__(self, model: ImagesAndTexts, texts: tuple[str, ...], name: str) -> None:
        self._model, self.labels, self.name = model, texts, name
        self._texts = model.texts(texts)
        self.dim, self.hash = len(texts), f"{model.hash} {texts}"

    def __call__(self, images: Tensor) -> Array:
        """(N, K), float64."""
        return np.asarray((self._model.images(images) @ self._texts.T).numpy(), np.float64)


def _transformers(given: str, files: ModelFiles, device: str) -> FeatureExtractor:
    folder = Path(given)
    if not transformers.saved_as(folder).endswith(HEAD):
        return ZeroShot(folder, device)
    model, missing = transformers.load_pretrained(folder, device, HEAD)
    if missing:
        raise ConfigurationError(f"{folder} lacks weights of its classifier: {', '.join(sorted(missing)[:3])}")
    made = LabelledScores(
        lambda images: model(pixel_values=images).logits,
        folder.resolve().name,
        weights_hash(model.state_dict()),
        (files.channels, files.size, files.size),
        device,
        where=f"judge {folder}",
        preparation=transformers.image_preparation(folder),
    )
    config = getattr(model, "config")  # noqa: B009
    made.labels = tuple(str(config.id2label[i]) for i in range(made.dim))
    made.separate = config.problem_type == SEPARATE
    return made


TRANSFORMERS = FeatureKind(_transformers, transformers.takes)
CLASSIFIER = FeatureKind(_own, lambda given, files: is_judge(given))
