"""Features of a judge: the pooled last ones of a network that shares nothing with what a search measures by.

`judge` is the bundled judge of the data that a zoo model was trained on, `judge:NAME` or `judge:FOLDER` any other.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.files import read_json
from fewstep.tasks.metrics._network import in_slices, weights_hash
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.judge import BATCH, CONFIG_FILE, bundled_judges, find_judge, load_judge

REFERENCE_FILE, JUDGE = "reference.npz", "-judge"


class JudgeFeatures:
    """Pooled features (N, dim) of images (N, C, H, W) in [-1, 1]."""

    def __init__(self, judge: str, files: ModelFiles | None, device: str) -> None:
        self._network = load_judge(judge, device=device)
        # Of a model without labels too: only the images must be those that it knows.
        known = self._network.config["channels"], self._network.config["size"]
        if files is not None and known != (files.channels, files.size):
            raise ConfigurationError(
                f"judge {judge!r} knows images of {known[0]}x{known[1]}, model {files.name} makes "
                f"{files.channels}x{files.size}: give another"
            )
        self.name = f"fid-{find_judge(judge).name.removesuffix(JUDGE)}{JUDGE}"
        self.dim = self._network.head.in_features
        self.hash = weights_hash(self._network.state_dict())

    def _pooled(self, images: Tensor) -> Tensor:
        pooled: Tensor = self._network.body(images).mean(dim=(2, 3))
        return pooled

    def __call__(self, images: Tensor) -> Array:
        """See FeatureExtractor."""
        return in_slices(self._pooled, images, BATCH, self.dim, self._network.head.weight)


def own_judge(files: ModelFiles) -> str:
    """The bundled judge of the data set that a zoo model was trained on; empty where none knows such images."""
    name = files.trained_on
    if name not in bundled_judges():
        return ""
    knows = read_json(find_judge(name) / CONFIG_FILE)
    return name if (knows["channels"], knows["size"]) == (files.channels, files.size) else ""


def _judge(given: str, files: ModelFiles) -> str:
    if name := given or own_judge(files):
        return name
    known = ", ".join(bundled_judges())
    raise ConfigurationError(f"model {files.name} has no judge of its own: give judge:NAME ({known}) or judge:FOLDER")


def _made(given: str, files: ModelFiles, device: str) -> JudgeFeatures:
    return JudgeFeatures(_judge(given, files), files, device)


def _reference(given: str, files: ModelFiles) -> Path | None:
    return find_judge(_judge(given, files)) / REFERENCE_FILE


KIND = FeatureKind(_made, reference=_reference)
