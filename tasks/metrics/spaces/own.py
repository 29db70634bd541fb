"""The two spaces that fewstep brings: Inception, which FID is defined on, and its own small classifiers."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.features import ClassifierFeatures, InceptionFeatures
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.files import ModelFiles

AUTO = "auto"


def own_classifier(files: ModelFiles) -> Path:
    """Where a model has a classifier beside it, if it has."""
    return files.root / "classifier"


def _inception(given: str, files: ModelFiles, device: str) -> InceptionFeatures:
    return InceptionFeatures(device=device)


def _is_folder(given: str, files: ModelFiles) -> bool:
    return bool(given) and Path(given).is_dir()


def _classifier(given: str, files: ModelFiles, device: str) -> ClassifierFeatures:
    folder = own_classifier(files) if given == AUTO else Path(given)
    classifier = load_classifier(folder, device)
    if (classifier.config["channels"], classifier.config["size"]) != (files.channels, files.size):
        raise ConfigurationError(
            f"the classifier in {folder} takes {classifier.config['channels']}x{classifier.config['size']} images, "
            f"the model {files.name} makes {files.channels}x{files.size}"
        )
    return ClassifierFeatures(classifier, f"fid-{files.name.split('-')[0] if given == AUTO else folder.name}")


def _reference(given: str, files: ModelFiles) -> Path | None:
    return files.root / "reference.npz" if given == AUTO else None


INCEPTION = FeatureKind(_inception, reference=_reference)
CLASSIFIER = FeatureKind(_classifier, _is_folder, gradients=True, reference=_reference)
