"""Which features measure a model: what `--features` names, found by name or by what it is."""

from __future__ import annotations

from fewstep.errors import ConfigurationError
from fewstep.plugins import Registry
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.own import AUTO, own_classifier
from fewstep.tasks.models.files import ModelFiles

# In the order in which they are asked whether they take what was given.
FEATURES = Registry(
    "feature",
    {
        "inception": "fewstep.tasks.metrics.spaces.own:INCEPTION",
        "transformers": "fewstep.tasks.metrics.spaces.transformers:KIND",
        "classifier": "fewstep.tasks.metrics.spaces.own:CLASSIFIER",
        "torchscript": "fewstep.tasks.metrics.spaces.torchscript:KIND",
        "onnx": "fewstep.tasks.metrics.spaces.onnx:KIND",
        "callable": "fewstep.tasks.metrics.spaces.called:KIND",
    },
)


def feature_kind(features: str, files: ModelFiles) -> tuple[FeatureKind, str]:
    """The kind, and what it is made from: NAME, NAME:ARGUMENT, what a kind takes, or `auto`.

    `auto` is the `classifier/` beside the model, which the zoo's entries have, and Inception without one.
    ConfigurationError with what there is where nothing takes it.
    """
    if features == AUTO:
        name = "classifier" if own_classifier(files).is_dir() else "inception"
        return FEATURES.load(name), AUTO
    name, _, argument = features.partition(":")
    if name in FEATURES.names:
        return FEATURES.load(name), argument
    for name in FEATURES.names:
        kind: FeatureKind = FEATURES.load(name)
        if kind.takes(features, files):
            return kind, features
    named = ", ".join([AUTO, "inception", *(name for name in FEATURES.names if name not in FEATURES.own)])
    raise ConfigurationError(
        f"unknown features {features!r}: use {named}, a folder of a classifier or of a transformers vision model, a "
        "TorchScript file (.pt, .ts), an ONNX file, or MODULE:CALLABLE"
    )


def make_extractor(features: str, files: ModelFiles, device: str) -> FeatureExtractor:
    """The features of what was given, see `feature_kind`."""
    kind, argument = feature_kind(features, files)
    return kind.make(argument, files, device)
