"""A diffusers pipeline as a model: what it makes and takes, told by its index and its class, no weights loaded.

Every pipeline whose loop asks one scheduler for its steps will do. Its text encoders, its autoencoder and whatever else
it holds are used by its own call; here is only what planning a search needs to know.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from fewstep.errors import ModelError
from fewstep.tasks.models.checks import AFTERWARDS, check_meaning, json_object, parts_of
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.models.model_files import FOLDERS, ModelFiles
from fewstep.tasks.models.noise_families import FlowMatching, lambda_of_strength
from fewstep.tasks.models.noise_schedule import DiscreteVP, NoiseSchedule

INDEX = "model_index.json"
# Pipelines that the executor samples by itself, where it understands all of their parts.
NATIVE = {
    "DDIMPipeline",
    "DDPMPipeline",
    "DiTPipeline",
    "DiffusionPipeline",
    "KarrasVePipeline",
    "LDMPipeline",
    "LatentConsistencyModelPipeline",
    "PNDMPipeline",
    "ScoreSdeVePipeline",
    "StableDiffusionPipeline",
}
# Arguments of a pipeline's call that are made here, or that mean nothing to one that is searched.
MADE_HERE = {
    *("prompt", "negative_prompt", "class_labels", "batch_size", "guidance_scale", "generator", "latents"),
    *("num_inference_steps", "timesteps", "sigmas", "mu", "eta", "output_type", "return_dict", "self"),
    *("num_images_per_prompt", "num_videos_per_prompt", "callback", "callback_steps", "callback_on_step_end"),
    *("callback_on_step_end_tensor_inputs", "kwargs", "args"),
}
# Latent side of pipelines whose network does not say it.
SIDES = {"FluxPipeline": 128}
# A blob of the hub's cache is named by the SHA-256 of what it holds.
BLOB = re.compile(r"[0-9a-f]{64}")


def index_of(root: Path) -> dict[str, Any] | None:
    """The index of a pipeline's directory; None where there is none."""
    return json_object(root / INDEX) if (root / INDEX).is_file() else None


def is_native(root: Path) -> bool:
    """Whether a directory is sampled by the executor alone, as far as its index tells."""
    index = index_of(root)
    return index is None or index.get("_class_name") in NATIVE


def is_pipeline(root: Path) -> bool:
    """Whether its index names a pipeline of a class of its own, which can be called."""
    index = index_of(root)
    return index is not None and index.get("_class_name") not in (None, "DiffusionPipeline")


def sides(asked: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Height and width that are asked for; ModelError where one is no number of pixels."""
    height, width = asked.get("height"), asked.get("width")
    for side in (height, width):
        if side is not None and not (isinstance(side, int) and side > 0):
            raise ModelError(f"{side!r} is no number of pixels")
    return height, width


def find_pipeline(root: Path, loading: Loading, asked: Mapping[str, Any]) -> PipelineFiles:
    """The pipeline in a directory, to be called with the arguments that are asked for.

    ModelError where it cannot be called with a schedule of ours in it.
    """
    index = index_of(root)
    if index is None:
        raise ModelError(f"{root} has no {INDEX}: save the whole pipeline with save_pretrained")
    network = next((root / name for name in FOLDERS if (root / name / "config.json").is_file()), None)
    if network is None:
        raise ModelError(f"{root} has no {' or '.join(f'{name}/' for name in FOLDERS)} with a config.json in it")
    if not (root / "scheduler" / "scheduler_config.json").is_file():
        raise ModelError(f"{root} has no scheduler/scheduler_config.json: the noise schedule is read from it")
    files = PipelineFiles(
        root.absolute().name, root, network, root / "scheduler", None, loading, *sides(asked), asked.get("strength")
    )
    files.check()
    return files


@dataclass(frozen=True)
class PipelineFiles(ModelFiles):
    """The same for a pipeline that is called as a whole; `unet` is the folder of its main network.

    `height`, `width` and `strength` are those that are asked for, None: its own.
    """

    height: int | None = None
    width: int | None = None
    asked_strength: float | None = None

    @property
    def strength(self) -> float | None:
        """How much of the noise is put on the image that it starts from; None: it starts from noise."""
        if "strength" not in self.takes:
            return None
        default = self.takes["strength"].default
        given = self.asked_strength if self.asked_strength is not None else default
        if not (isinstance(given, int | float) and 0 < given <= 1):
            raise ModelError(f"strength {given!r}: give a number above 0 and at most 1")
        return float(given)

    @property
    def image_seq_len(self) -> int | None:
        """Tokens of an image: patches of its latents, of which FLUX and its kin pack four into one."""
        patch = self.unet_config.get("patch_size")
        if not isinstance(patch, int):
            return None
        patch *= 2 if patch == 1 and hasattr(self.pipeline, "_pack_latents") else 1
        height, width = (side // self._factor // patch for side in self.sides)
        return height * width

    @property
    def even(self) -> bool:
        """Whether its call makes sigmas 1 .. 1 / n by itself, of which only its source tells."""
        return "np.linspace(1.0, 1 / num_inference_steps" in inspect.getsource(self.pipeline.__call__)

    @cached_property
    def noise(self) -> NoiseSchedule:
        """Its scheduler's, from where sampling begins: at a part of the times, where it begins with an image."""
        noise = super().noise
        if self.strength is None or self.strength == 1:
            return noise
        begin = lambda_of_strength(noise, self.strength)
        if isinstance(noise, FlowMatching | DiscreteVP):
            noise.start_at(begin, self.strength)
        return noise

    @property
    def piped(self) -> bool:
        """True: the pipeline's own call samples."""
        return True

    @cached_property
    def index(self) -> dict[str, Any]:
        """What model_index.json says."""
        return json_object(self.root / INDEX)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline's class; ModelError where diffusers has none of that name."""
        import diffusers

        name = self.index.get("_class_name")
        found = getattr(diffusers, str(name), None)
        if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
            raise ModelError(f"{self.root / INDEX}: diffusers has no pipeline {name!r}: update it, or save another")
        return found

    @cached_property
    def takes(self) -> dict[str, inspect.Parameter]:
        """What the pipeline's call can be given, by name."""
        return dict(inspect.signature(self.pipeline.__call__).parameters)

    @property
    def parts(self) -> set[str]:
        """What the pipeline is made of, by name."""
        return set(inspect.signature(self.pipeline.__init__).parameters)

    @property
    def arguments(self) -> list[str]:
        """Arguments of its call that are a user's to give."""
        return sorted(set(self.takes) - MADE_HERE)

    def check(self) -> None:
        """ModelError where it cannot be searched: its class, its noise, or what its call needs."""
        name = self.pipeline.__name__
        if "num_inference_steps" not in self.takes:
            raise ModelError(f"{name} takes no num_inference_steps: it has no loop that a schedule could be put into")
        if not hasattr(self.pipeline, "encode_prompt") and "prompt" in self.takes:
            raise ModelError(f"{name} makes no embeddings of prompts by itself, which is not supported")
        if strays := sorted(parts_of(self.root) - self.parts):
            raise ModelError(f"{self.root} holds a {strays[0]} that a {name} has no use for: take it away")
        check_meaning(self)

    @property
    def needs(self) -> list[str]:
        """Arguments without a default that are a user's to give."""
        needed = [n for n, p in self.takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        return sorted(set(needed) - MADE_HERE)

    @property
    def text(self) -> bool:
        """Whether its call takes prompts."""
        return "prompt" in self.takes

    @property
    def transformer(self) -> bool:
        """False: which network it is matters to the pipeline alone."""
        return False

    @property
    def classes(self) -> int | None:
        """How many labels its call takes."""
        if "class_labels" not in self.takes:
            return None
        count = self.unet_config.get("num_embeds_ada_norm") or self.unet_config.get("num_class_embeds")
        return int(count) if count else None

    @property
    def null_label(self) -> int | None:
        """The row behind the labels, as DiTPipeline has it."""
        return self.classes

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told the scale of guidance, as distilled ones are."""
        return bool(self.unet_config.get("guidance_embeds")) or super().embeds_guidance

    @property
    def skips(self) -> int:
        """0: skip coefficients are for networks that the executor calls."""
        return 0

    @property
    def condition(self) -> None:
        """None: what it is shown are arguments of its call."""
        return None

    @property
    def shape(self) -> tuple[int, int, int]:
        """ModelError: what the scheduler sees is the pipeline's own affair, and known where it is loaded."""
        raise self._called_directly()

    def _called_directly(self) -> ModelError:
        return ModelError(
            f"{self.name} is sampled by its {self.index['_class_name']}: this needs a network that is called directly "
            "(a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel)"
        )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        config = self.vae_config
        if config is not None:
            return int(config.get("out_channels", config.get("in_channels", 3)))
        return int(self.unet_config.get("out_channels") or 3)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images, in pixels: what is asked for, or the pipeline's own default."""
        return self.height or self._default("height", 0), self.width or self._default("width", 1)

    @property
    def size(self) -> int:
        """The shorter side."""
        return min(self.sides)

    def _default(self, name: str, axis: int) -> int:
        said = self.takes[name].default if name in self.takes else None
        if isinstance(said, int):
            return said
        side = self.unet_config.get(f"sample_{name}", self.unet_config.get("sample_size"))
        side = side or SIDES.get(str(self.index.get("_class_name")))
        if isinstance(side, list | tuple):
            side = side[axis]
        if not side:
            raise ModelError(f"{self.root}: neither the network nor the pipeline says how large its images are: say it")
        return int(side) * self._factor

    @property
    def _factor(self) -> int:
        config = self.vae_config
        if config is None:
            return 1
        for key in ("spatial_compression_ratio", "scale_factor_spatial"):
            if isinstance(config.get(key), int):
                return int(config[key])
        levels = next((config[k] for k in ("block_out_channels", "encoder_block_out_channels") if k in config), [1] * 4)
        return int(2 ** (len(levels) - 1))

    @cached_property
    def hash(self) -> str:
        """Content address of all parts that take part in sampling: 16 hex digits."""
        digest = hashlib.sha256(str(self.index.get("_class_name")).encode())
        settings = {k: v for k, v in self.index.items() if not k.startswith("_") and not isinstance(v, list)}
        digest.update(repr(sorted(settings.items())).encode())
        parts = sorted(k for k, v in self.index.items() if isinstance(v, list) and k not in AFTERWARDS)
        for path in (p for part in parts for p in sorted((self.root / part).rglob("*")) if p.is_file()):
            digest.update(path.relative_to(self.root).as_posix().encode())
            digest.update(_content(path))
        digest.update(self.loading.identity.encode())
        return digest.hexdigest()[:16]

    def with_quantized(self, folder: Path | str) -> NoReturn:
        """ModelError: quantised networks are called directly."""
        raise self._called_directly()


def _content(path: Path) -> bytes:
    blob = path.resolve().name
    if path.is_symlink() and BLOB.fullmatch(blob):
        return bytes.fromhex(blob)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
