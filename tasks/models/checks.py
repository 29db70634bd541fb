"""What of a model's directory is understood: its parts, the network's inputs and outputs. The rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ModelError
from fewstep.files import read_json
from fewstep.tasks.models import condition_config

if TYPE_CHECKING:
    from fewstep.tasks.models.files import ModelFiles

TRANSFORMER = "DiTTransformer2DModel"
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", TRANSFORMER)
# What a text-to-image directory holds besides network and scheduler.
TEXT_PARTS = ("text_encoder", "tokenizer")
# Where an autoencoder lies, and what it may be.
AUTOENCODERS = ("vae", "vqvae")
DECODERS = ("AutoencoderKL", "VQModel")
# Parts of a pipeline that take part in sampling, by what they must be.
PARTS = {
    "unet": NETWORKS,
    "transformer": NETWORKS,
    "scheduler": (),
    "vae": DECODERS,
    "vqvae": DECODERS,
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Parts that only look at finished images.
AFTERWARDS = {"safety_checker", "feature_extractor"}
WEIGHTS = "diffusion_pytorch_model"
# Settings of a network that ask for an input besides x, time and condition, with the values that ask for none.
NEEDS_NOTHING: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text"),
    "attention_type": (None, "default"),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
}


class UnsupportedModelError(ModelError):
    """What is asked for is not known to the executor; the pipeline's own call may do it."""


def check_files(files: ModelFiles) -> None:
    """ModelError where a model would be sampled otherwise than its directory says."""
    _check_parts(files)
    _check_network(files)
    if files.condition is not None:
        _check_condition(files)
    _check_channels(files)
    _check_autoencoder(files)
    check_meaning(files)
    _check_weights(files.unet, files.loading.variant)
    missing = [part for part in TEXT_PARTS if not (files.root / part).is_dir()]
    if files.text and missing:
        raise ModelError(f"{files.root} takes prompts but has no {missing[0]}/: save the whole pipeline")


def _check_parts(files: ModelFiles) -> None:
    """Every part of a pipeline is used or known not to matter; its index and its folders are both asked."""
    for name, (path, kind) in sorted(_parts(files.root).items()):
        if name in AFTERWARDS:
            continue
        if name not in PARTS:
            raise UnsupportedModelError(
                f"{path}: this pipeline samples with a {name} ({kind or 'of unknown class'}), which is not supported; "
                f"supported parts are {', '.join(PARTS)}"
            )
        if PARTS[name] and kind and kind not in PARTS[name]:
            # Another network has inputs of its own; other parts are the pipeline's affair.
            unknown = ModelError if PARTS[name] is NETWORKS else UnsupportedModelError
            raise unknown(f"{path}: {name} is a {kind!r}, which is not supported, use {' or '.join(PARTS[name])}")


def parts_of(root: Path) -> set[str]:
    """Names of the parts that take part in sampling, as folders or in the index of a pipeline."""
    return set(_parts(root)) - AFTERWARDS


def _parts(root: Path) -> dict[str, tuple[Path, str]]:
    """Parts by name: where they are named, and their class as far as it is said."""
    found: dict[str, tuple[Path, str]] = {}
    for config in root.glob("*/config.json"):
        name = config.parent.name
        # Our own training puts these beside the pipeline.
        if name not in (condition_config.FOLDER, "classifier"):
            found[name] = config, str(json_object(config).get("_class_name", ""))
    index = root / "model_index.json"
    if index.is_file():
        for name, value in json_object(index).items():
            if isinstance(value, list) and len(value) == 2 and value[1] is not None and not name.startswith("_"):
                found[name] = index, str(value[1])
    return found


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model; ModelError where there is none."""
    value = read_json(path, error=ModelError)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _check_network(files: ModelFiles) -> None:
    config = files.unet_config
    if config.get("_class_name") not in NETWORKS:
        raise ModelError(f"{files.unet}: {config.get('_class_name')!r} is not supported, use {' or '.join(NETWORKS)}")
    for key, values in NEEDS_NOTHING.items():
        if config.get(key) not in values:
            raise ModelError(
                f"{files.unet}: {key} {config[key]!r} asks for an input that is not supported (SDXL and the like)"
            )
    count = config.get("num_embeds_ada_norm" if files.transformer else "num_class_embeds")
    if files.transformer and not isinstance(count, int):
        raise ModelError(f"{files.unet}: num_embeds_ada_norm is missing from config.json: it counts the labels")
    if files.text and count is not None:
        raise ModelError(f"{files.unet}: num_class_embeds {count!r} beside prompts is not supported")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ModelError(f"{files.unet}: {count!r} is no number of labels")
    if files.null_label is not None and not files.classes:
        raise ModelError(f"{files.unet}: the null label is the only one: train with labels, or without")


def _check_channels(files: ModelFiles) -> None:
    config = files.unet_config
    inputs, outputs = config.get("in_channels"), config.get("out_channels")
    if not isinstance(inputs, int):
        raise ModelError(f"{files.unet}: in_channels is missing from config.json: save the model with save_pretrained")
    shown = files.condition.channels if files.condition else 0
    answers: set[int | None] = {inputs - shown}
    if not shown:
        # With twice as many, the second half is a variance, which solvers do not ask for; None means as many.
        answers |= {None, 2 * inputs} if files.transformer else {2 * inputs} if files.learns_variance else set()
    if outputs not in answers:
        raise ModelError(
            f"{files.unet}: {inputs} channels in and {outputs} out; "
            f"a denoiser has as many out as in but for the {shown} that condition/config.json says it is shown"
        )
    size = config.get("sample_size")
    if not size:
        raise ModelError(f"{files.unet}: sample_size is missing from config.json: set it to the image's side")
    sides = size if isinstance(size, list) else [size]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(f"{files.unet}: sample_size {size!r} is no side of an image")
    if len(set(sides)) != 1:
        raise ModelError(f"{files.unet}: sample_size {size} is not square: only square images are supported")


def _check_condition(files: ModelFiles) -> None:
    """A condition is for a network of latents with room for its channels."""
    condition, folder = files.condition, files.root / condition_config.FOLDER
    assert condition is not None
    if files.text or files.vae_config is None:
        raise ModelError(f"{folder}: only networks of latents that take no prompts are shown images")
    latents = int(files.vae_config.get("latent_channels", 4))
    if condition.kind == "inpaint" and condition.channels != latents + 1:
        raise ModelError(f"{folder}: {condition.channels} channels; inpainting shows {latents} latents and one hole")


def _check_autoencoder(files: ModelFiles) -> None:
    config, folder = files.vae_config, files.vae
    if config is None or folder is None:
        return
    if config.get("_class_name") not in DECODERS:
        raise ModelError(f"{folder}: {config.get('_class_name')!r} is no {' or '.join(DECODERS)}")
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ModelError(f"{folder}: {key} of the latents is not supported: set it to null if it is not used")
    latents = config.get("latent_channels", 4)
    if latents != files.shape[0]:
        raise ModelError(f"{folder} decodes {latents} channels, the network makes {files.shape[0]}")
    _check_weights(folder, files.loading.variant)


def check_meaning(files: ModelFiles) -> None:
    """The prediction type must mean something under the noise schedule."""
    kind, noise = files.prediction_type, files.noise
    try:
        noise.output_map(kind, noise.lambda_start)
    except ModelError as error:
        raise ModelError(f"{files.scheduler}: prediction_type {kind!r}: {error}") from None


def _check_weights(folder: Path, variant: str) -> None:
    told = f".{variant}" if variant else ""
    names = [f"{WEIGHTS}{told}{end}" for end in (".safetensors", ".bin")]
    parts = [f"{WEIGHTS}{end}.index{told}.json" for end in (".safetensors", ".bin")]
    if any((folder / name).is_file() for name in (*names, *parts)):
        return
    there = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    raise ModelError(
        f"{folder} has no {names[0]}, but {', '.join(there)}: say which variant, as --variant fp16"
        if there
        else f"{folder} holds no weights: expected {names[0]}"
    )
