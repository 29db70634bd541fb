"""A model on disk: where its parts lie, and what their configurations say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import ModelError
from fewstep.files import read_json
from fewstep.tasks.models import condition_config, from_diffusers
from fewstep.tasks.models.checks import (
    AUTOENCODERS,
    TEXT_PARTS,
    TRANSFORMER,
    json_object,
)
from fewstep.tasks.models.condition_config import ConditionConfig, read_condition
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.scheduler_settings import build_scheduler

ZOO = Path(__file__).parent / "zoo"
# Where a pipeline keeps its network.
FOLDERS = ("unet", "transformer")
# What its author says of a model that diffusers has no place for.
OWN_FILE = "fewstep.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's parts lie, and what its configuration says. `unet` is the folder of the network, a transformer's
    too; `quantized` that of a network that takes the place of the model's own."""

    name: str
    root: Path
    unet: Path
    scheduler: Path
    quantized: Path | None = None
    loading: Loading = field(default_factory=Loading)

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The network's config.json."""
        return json_object(self.unet / "config.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's scheduler_config.json."""
        return json_object(self.scheduler / "scheduler_config.json")

    @property
    def text(self) -> bool:
        """Whether the network takes prompts."""
        return bool(self.unet_config.get("_class_name") == "UNet2DConditionModel")

    @property
    def transformer(self) -> bool:
        """Whether the network is a DiT."""
        return bool(self.unet_config.get("_class_name") == TRANSFORMER)

    @cached_property
    def trained_on(self) -> str:
        """The data set that the model's recipe.json names; empty where there is none."""
        recipe = self.root / "recipe.json"
        said = read_json(recipe, error=ModelError) if recipe.is_file() else None
        name = said.get("dataset") if isinstance(said, dict) else None
        return name if isinstance(name, str) else ""

    @property
    def vae(self) -> Path | None:
        """The autoencoder's folder, None for a model of pixels. An LDMPipeline calls it vqvae, whatever it is."""
        return next((self.root / name for name in AUTOENCODERS if (self.root / name).is_dir()), None)

    @cached_property
    def vae_config(self) -> dict[str, Any] | None:
        """The autoencoder's config.json, None for a model of pixels."""
        return None if self.vae is None else json_object(self.vae / "config.json")

    @cached_property
    def condition(self) -> ConditionConfig | None:
        """What the network is shown besides, None where nothing."""
        folder = self.root / condition_config.FOLDER
        return read_condition(folder) if folder.is_dir() else None

    @property
    def piped(self) -> bool:
        """Whether a whole pipeline is called as it is, see `tasks/models/pipelines`."""
        return False

    @property
    def shown(self) -> str:
        """Kind of what the network is shown, or empty."""
        return self.condition.kind if self.condition else ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises: images, or latents where there is an autoencoder."""
        size = self.unet_config["sample_size"]
        side = int(size[0] if isinstance(size, list | tuple) else size)
        shown = self.condition.channels if self.condition else 0
        return int(self.unet_config["in_channels"]) - shown, side, side

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.shape[0] if self.vae_config is None else int(self.vae_config["out_channels"])

    @property
    def size(self) -> int:
        """Side of the square images, in pixels: an AutoencoderKL doubles it at all its levels but one.

        Its own `sample_size` only says what it was trained on, which pipelines do not hold to.
        """
        if self.vae_config is None:
            return self.shape[1]
        return int(self.shape[1] * 2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @cached_property
    def _own(self) -> dict[str, Any]:
        path = self.root / OWN_FILE
        said = json_object(path) if path.is_file() else {}
        known = () if self.transformer or self.text else ("null_label",)
        if others := sorted(set(said) - set(known)):
            raise ModelError(f"{path} says {others[0]!r}, which means nothing for this network: leave it out")
        return said

    @property
    def classes(self) -> int | None:
        """How many labels can be asked for, the null label not among them; None for a model without labels."""
        if self.transformer:
            return int(self.unet_config["num_embeds_ada_norm"])
        count = self.unet_config.get("num_class_embeds")
        if count is None or self.text:
            return None
        return int(count) if self.null_label is None else int(count) - 1

    @property
    def null_label(self) -> int | None:
        """The label that means `no label`, None for a model that has none.

        A DiTTransformer2DModel has one row more than labels, for those it drops. Of a UNet2DModel it is the last, where
        `null_label` in fewstep.json says so: diffusers has no place to say it.
        """
        label, count = self._own.get("null_label"), self.unet_config.get("num_class_embeds")
        if self.transformer:
            return int(self.unet_config["num_embeds_ada_norm"])
        if label is None:
            return None
        if label is True or not isinstance(count, int) or label != count - 1:
            raise ModelError(
                f"{self.root / OWN_FILE}: null_label {label!r} is not the last of the network's {count} labels"
            )
        return int(label)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told the scale of guidance, as latent consistency models are, and needs no null."""
        return self.unet_config.get("time_cond_proj_dim") is not None

    @property
    def learns_variance(self) -> bool:
        """Whether the network returns a variance besides, in as many channels again."""
        return str(self.scheduler_config.get("variance_type")) in ("learned", "learned_range")

    @property
    def skips(self) -> int:
        """How many skip tensors the network concatenates."""
        layers = self.unet_config.get("layers_per_block", 2)
        blocks = len(self.unet_config.get("up_block_types", ()))
        return sum(n + 1 for n in (layers if isinstance(layers, list | tuple) else [layers] * blocks))

    @cached_property
    def _stock(self) -> Any:
        try:
            return build_scheduler(self.scheduler_config)
        except ModelError as error:
            raise ModelError(f"{self.scheduler / 'scheduler_config.json'}: {error}") from None

    @cached_property
    def prediction_type(self) -> str:
        """What the network returns: epsilon, sample, v_prediction, flow_prediction or score."""
        return from_diffusers.prediction_type(from_diffusers.config_of(self._stock))

    @property
    def image_seq_len(self) -> int | None:
        """Tokens of an image, which the shift of a flow may depend on; None where the network has none."""
        return None

    @property
    def even(self) -> bool | None:
        """Whether its pipeline gives its scheduler even sigmas; None: as most do."""
        return None

    @cached_property
    def noise(self) -> NoiseSchedule:
        """The noise schedule the scheduler's configuration describes."""
        try:
            return from_diffusers.from_diffusers(self._stock, self.image_seq_len, even=self.even)
        except ModelError as error:
            raise ModelError(f"{self.scheduler / 'scheduler_config.json'}: {error}") from None

    @cached_property
    def hash(self) -> str:
        """Content address of all weights and configurations: 16 hex digits."""
        digest = hashlib.sha256()
        parts = sorted(p for p in self.unet.iterdir() if p.suffix in (".safetensors", ".bin"))
        others = [
            p for name in (*AUTOENCODERS, condition_config.FOLDER, *TEXT_PARTS) if (p := self.root / name).is_dir()
        ]
        more = sorted(p for folder in others for p in folder.iterdir() if p.is_file())
        for path in [self.unet / "config.json", self.scheduler / "scheduler_config.json", *parts, *more]:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        if self.classes is not None and self.null_label is None:
            digest.update(b"no null label")
        digest.update(self.loading.identity.encode())
        if self.quantized is not None:
            from fewstep.tasks.quantization.storage import find_quantized

            digest.update(find_quantized(self.quantized).hash.encode())
        return digest.hexdigest()[:16]

    def with_quantized(self, folder: Path | str) -> ModelFiles:
        """The same model with a quantised network; ModelError where that was made of another model."""
        from fewstep.tasks.quantization.storage import find_quantized

        base = replace(self, quantized=None)
        made_of = find_quantized(Path(folder)).description
        if made_of["model_hash"] != base.hash:
            raise ModelError(
                f"{folder} was made of model {made_of['model']!r} ({made_of['model_hash']}), not of {self.name!r} "
                f"({base.hash}): quantise this one, or give that one as --model"
            )
        return replace(self, quantized=Path(folder))
