"""CLIP score: how well images fit their prompts, 100 max(0, cos(image, text)), the mean over the images.

The argument, or else `--features`, is the folder of a `transformers` model that embeds images and texts alike, such as
CLIP or SigLIP. Higher is better, so the figure is minus the mean. Source: Hessel et al. 2021, "CLIPScore", section 3,
with the factor 100 that is used in the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics._network import weights_hash
from fewstep.tasks.metrics.grouped import MeanMetric
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Array
from fewstep.tasks.metrics.spaces.transformers import embedded, image_preparation, load_pretrained, load_tokenizer
from fewstep.tasks.work import Task

if TYPE_CHECKING:
    from fewstep.tasks.worker import Worker

BATCH = 32


class ImagesAndTexts:
    """A model that embeds both; ConfigurationError where the folder holds none."""

    def __init__(self, folder: Path, device: str) -> None:
        model, missing = load_pretrained(folder, device)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")) or missing:
            why = f"lacks weights: {', '.join(sorted(missing)[:3])}" if missing else "embeds no images and texts"
            raise ConfigurationError(
                f"{folder} holds a {type(model).__name__}, which {why}: give a CLIP model's folder"
            )
        self._model: Any = model
        self._prepare, self._tokenize = image_preparation(folder), load_tokenizer(folder)
        model_config: Any = model.config
        self._length = int(model_config.get_text_config().max_position_embeddings)
        self.hash, self._device = weights_hash(model.state_dict()), device

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings (N, D) of unit length of images (N, C, H, W) in [-1, 1]."""
        parts = torch.split(images.to(self._device, torch.float32), BATCH)
        return _unit(
            torch.cat([embedded(self._model.get_image_features(pixel_values=self._prepare(p))) for p in parts])
        )

    @torch.no_grad()
    def texts(self, texts: tuple[str, ...]) -> Tensor:
        """The same of texts, cut to the model's length; each once, whatever stands beside it."""
        tokens = self._tokenize(
            list(texts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self._device)
        wanted = {name: torch.split(tokens[name], BATCH) for name in ("input_ids", "attention_mask") if name in tokens}
        batches = [dict(zip(wanted, values, strict=True)) for values in zip(*wanted.values(), strict=True)]
        return _unit(torch.cat([embedded(self._model.get_text_features(**batch)) for batch in batches]))


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.double(), dim=1).cpu()


class ClipScore(MeanMetric):
    """Minus the mean over images of 100 max(0, cos(image, its prompt))."""

    figure: ClassVar[str] = "neg-clip-score"
    higher: ClassVar[bool] = True
    quality: ClassVar[str] = "clip_score"
    signed: ClassVar[bool] = True

    def placed(self, setting: Setting, argument: str) -> Setting:
        """The argument is its own folder."""
        return setting

    @property
    def folder(self) -> Path:
        """Where the model is."""
        given = self.argument or self.subject.features
        if not Path(given).is_dir():
            raise ConfigurationError(
                f"clip-score needs the folder of a CLIP model, not {given!r}: measure clip-score:FOLDER, or give it as "
                "--features"
            )
        return Path(given)

    @property
    def model(self) -> ImagesAndTexts:
        """The model, loaded once a process."""
        held: dict[str, ImagesAndTexts] = self.setting.__dict__.setdefault("_images_and_texts", {})
        key = str(self.folder)
        if key not in held:
            held[key] = ImagesAndTexts(self.folder, self.setting.device)
        return held[key]

    def check(self) -> None:
        """There are prompts, and a model that reads them."""
        if not self.subject.conditions.prompt_list:
            raise ConfigurationError(
                "clip-score compares images with their prompts: give --prompts, or another --metric"
            )
        assert self.model.hash

    def prepare(self, worker: Worker) -> None:
        """Load the model."""
        self.check()

    @property
    def identity(self) -> dict[str, object]:
        """Which it is, and the model's weights."""
        return {"metric": self.figure, "features": self.model.hash}

    @property
    def features(self) -> str:
        """The folder's name."""
        return f"fid-{self.folder.resolve().name}"

    def values(self, worker: Worker, images: Tensor, task: Task, start: int) -> Array:
        """Each image's."""
        prompts = self.subject.conditions.prompt_list
        held: dict[str, Tensor] = self.__dict__.setdefault("_texts", {})
        if "all" not in held:
            held["all"] = self.model.texts(prompts)
        texts = held["all"][[(start + i) % len(prompts) for i in range(len(images))]]
        cosine = (self.model.images(images) * texts).sum(1)
        return np.asarray(100.0 * cosine.clamp_min(0.0).numpy(), np.float64)
