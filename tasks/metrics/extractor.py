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
        "judge": "fewstep.tasks.metrics.spaces.judged:KIND",
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
    if (found := kind_in(FEATURES, features, files)) is not None:
        return found
    named = ", ".join([AUTO, "inception", *(name for name in FEATURES.names if name not in FEATURES.own)])
    raise ConfigurationError(
        f"unknown features {features!r}: use {named}, a folder of a classifier or of a transformers vision model, a "
        "TorchScript file (.pt, .ts), an ONNX file, or MODULE:CALLABLE"
    )


def kind_in(registry: Registry, given: str, files: ModelFiles) -> tuple[FeatureKind, str] | None:
    """The kind of a registry that NAME or NAME:ARGUMENT names, or else the first that takes it; None without one."""
    name, _, argument = given.partition(":")
    if name in registry.names:
        return registry.load(name), argument
    for name in registry.names:
        kind: FeatureKind = registry.load(name)
        if kind.takes(given, files):
            return kind, given
    return None


def make_extractor(features: str, files: ModelFiles, device: str) -> FeatureExtractor:
    """The features of what was given, see `feature_kind`."""
    kind, argument = feature_kind(features, files)
    return kind.make(argument, files, device)
