"""Find and check a model on disk without loading its network: what the driver needs to plan a search.

Accepted: a zoo name, a diffusers pipeline directory (`unet/` or `transformer/`, `scheduler/`; with `vae/` the
network works on latents, with `text_encoder/` and `tokenizer/` it takes prompts: StableDiffusionPipeline; with
`condition/` it is shown a part of an image or a layout, in input channels behind its latents), or a bare UNet2DModel
or DiTTransformer2DModel directory with a `scheduler_config.json` in it or in `scheduler/`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import ModelError
from fewstep.files import read_json
from fewstep.tasks.models import condition_config, from_diffusers
from fewstep.tasks.models.condition_config import ConditionConfig, read_condition
from fewstep.tasks.models.noise_schedule import NoiseSchedule

ZOO = Path(__file__).parent / "zoo"
TRANSFORMER = "DiTTransformer2DModel"
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", TRANSFORMER)
# Where a pipeline keeps its network.
FOLDERS = ("unet", "transformer")
# What a text-to-image directory holds besides network and scheduler.
TEXT_PARTS = ("text_encoder", "tokenizer")


def zoo_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(p.name for p in ZOO.iterdir() if (p / "model_index.json").is_file()) if ZOO.is_dir() else []


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's parts lie, and what its configuration says. `unet` is the folder of the network, a transformer's
    too; `quantized` that of a network that takes the place of the model's own."""

    name: str
    root: Path
    unet: Path
    scheduler: Path
    quantized: Path | None = None

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The network's config.json."""
        return _read_json(self.unet / "config.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's scheduler_config.json."""
        return _read_json(self.scheduler / "scheduler_config.json")

    @property
    def text(self) -> bool:
        """Whether the network takes prompts."""
        return bool(self.unet_config.get("_class_name") == "UNet2DConditionModel")

    @property
    def transformer(self) -> bool:
        """Whether the network is a DiT."""
        return bool(self.unet_config.get("_class_name") == TRANSFORMER)

    @cached_property
    def vae_config(self) -> dict[str, Any] | None:
        """The autoencoder's config.json, None for a model of pixels."""
        folder = self.root / "vae"
        return _read_json(folder / "config.json") if folder.is_dir() else None

    @cached_property
    def condition(self) -> ConditionConfig | None:
        """What the network is shown besides, None where nothing."""
        folder = self.root / condition_config.FOLDER
        return read_condition(folder) if folder.is_dir() else None

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

    @property
    def null_label(self) -> int | None:
        """The label that means `no label`, for a model that was trained with labels; it is also their number."""
        if self.transformer:
            # diffusers' table has one row more, for the labels it drops.
            return int(self.unet_config["num_embeds_ada_norm"])
        count = self.unet_config.get("num_class_embeds")
        return None if count is None else int(count) - 1

    @property
    def skips(self) -> int:
        """How many skip tensors the network concatenates."""
        layers = self.unet_config.get("layers_per_block", 2)
        blocks = len(self.unet_config.get("up_block_types", ()))
        return sum(n + 1 for n in (layers if isinstance(layers, list | tuple) else [layers] * blocks))

    @property
    def prediction_type(self) -> str:
        """What the network returns: epsilon, sample, v_prediction, flow_prediction or score."""
        return from_diffusers.prediction_type(self.scheduler_config)

    @cached_property
    def noise(self) -> NoiseSchedule:
        """The noise schedule the scheduler's configuration describes."""
        import diffusers

        name = str(self.scheduler_config.get("_class_name", ""))
        scheduler = getattr(diffusers, name, None)
        if scheduler is None:
            raise ModelError(f"{self.scheduler}: diffusers has no scheduler class {name!r}")
        return from_diffusers.from_diffusers(scheduler.from_config(self.scheduler_config))

    @cached_property
    def hash(self) -> str:
        """Content address of all weights and configurations: 16 hex digits."""
        digest = hashlib.sha256()
        parts = sorted(p for p in self.unet.iterdir() if p.suffix in (".safetensors", ".bin"))
        others = [p for name in ("vae", condition_config.FOLDER, *TEXT_PARTS) if (p := self.root / name).is_dir()]
        more = sorted(p for folder in others for p in folder.iterdir() if p.is_file())
        for path in [self.unet / "config.json", self.scheduler / "scheduler_config.json", *parts, *more]:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
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


def find_model(model: str, quantized: str = "") -> ModelFiles:
    """Resolve a zoo name or a directory; ModelError says what is missing and where it was looked for.

    `quantized` is the folder of a quantised network of that model, or empty.
    """
    root = ZOO / model if model in zoo_names() else Path(model)
    if not root.is_dir():
        raise ModelError(
            f"no model {model!r}: give a diffusers directory or one of the bundled models ({', '.join(zoo_names())})"
        )
    unet = next((root / name for name in FOLDERS if (root / name).is_dir()), root)
    if not (unet / "config.json").is_file():
        raise ModelError(
            f"{root} has no unet/config.json, transformer/config.json or config.json: "
            "save the model with save_pretrained"
        )
    places = [p for p in (root / "scheduler", root) if (p / "scheduler_config.json").is_file()]
    if not places:
        raise ModelError(
            f"{root} has no scheduler/scheduler_config.json: save the scheduler beside the network, "
            "the noise schedule is read from it"
        )
    files = ModelFiles(root.absolute().name, root, unet, places[0])
    _check(files)
    return files.with_quantized(quantized) if quantized else files


def _check(files: ModelFiles) -> None:
    config = files.unet_config
    if config.get("_class_name") not in NETWORKS:
        raise ModelError(f"{files.unet}: {config.get('_class_name')!r} is not supported, use {' or '.join(NETWORKS)}")
    if files.condition is not None:
        _check_condition(files)
    shown = files.condition.channels if files.condition else 0
    answers = {config.get("in_channels")} if not shown else {int(config.get("in_channels") or 0) - shown}
    if files.transformer and not shown:
        # None means as many; with twice as many, the second half is a variance, which solvers do not ask for.
        answers |= {None, 2 * int(config.get("in_channels") or 0)}
    if files.transformer and not isinstance(config.get("num_embeds_ada_norm"), int):
        raise ModelError(f"{files.unet}: num_embeds_ada_norm is missing from config.json: it counts the labels")
    if config.get("out_channels") not in answers:
        raise ModelError(
            f"{files.unet}: {config.get('in_channels')} channels in and {config.get('out_channels')} out; "
            f"a denoiser has as many out as in but for the {shown} that condition/config.json says it is shown"
        )
    if not isinstance(config.get("in_channels"), int):
        raise ModelError(f"{files.unet}: in_channels is missing from config.json: save the model with save_pretrained")
    if not config.get("sample_size"):
        raise ModelError(f"{files.unet}: sample_size is missing from config.json: set it to the image's side")
    size = config["sample_size"]
    if isinstance(size, list) and len(set(size)) != 1:
        raise ModelError(f"{files.unet}: sample_size {size} is not square: only square images are supported")
    _check_meaning(files)
    if not any(p.suffix in (".safetensors", ".bin") for p in files.unet.iterdir()):
        raise ModelError(f"{files.unet} holds no weights: expected diffusion_pytorch_model.safetensors")
    missing = [part for part in TEXT_PARTS if not (files.root / part).is_dir()]
    if files.text and missing:
        raise ModelError(f"{files.root} takes prompts but has no {missing[0]}/: save the whole pipeline")
    if files.vae_config is not None and files.vae_config.get("_class_name") != "AutoencoderKL":
        raise ModelError(f"{files.root / 'vae'}: {files.vae_config.get('_class_name')!r} is no AutoencoderKL")


def _check_condition(files: ModelFiles) -> None:
    """A condition is for a network of latents with room for its channels."""
    condition, folder = files.condition, files.root / condition_config.FOLDER
    assert condition is not None
    if files.text or files.vae_config is None:
        raise ModelError(f"{folder}: only networks of latents that take no prompts are shown images")
    latents = int(files.vae_config.get("latent_channels", 4))
    if condition.kind == "inpaint" and condition.channels != latents + 1:
        raise ModelError(f"{folder}: {condition.channels} channels; inpainting shows {latents} latents and one hole")


def _check_meaning(files: ModelFiles) -> None:
    """The prediction type must mean something under the noise schedule."""
    try:
        files.noise.output_map(files.prediction_type, files.noise.lambda_start)
    except ModelError as error:
        raise ModelError(f"{files.scheduler}: prediction_type {files.prediction_type!r}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    value = read_json(path, error=ModelError)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value
