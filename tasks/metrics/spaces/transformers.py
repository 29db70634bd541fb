"""Features of a folder of a `transformers` vision model, as save_pretrained writes it: DINOv2, CLIP, SigLIP, ViT, ...

Images are brought to the size, mean and std of the folder's own image processor: the whole image, resized to what the
processor would crop to, by the rule of `preparation.py`. Features are the first of these that the model has: image
embeddings, projected as the model compares them with texts; its pooled output, where the folder holds its weights; the
first token of its last layer; the mean over the positions of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.errors import ConfigurationError
from fewstep.files import read_json
from fewstep.tasks.faults import first_line
from fewstep.tasks.metrics._network import weights_hash
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.metrics.spaces.preparation import Preparation
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.finite import check_finite

PROJECTED = "WithProjection"


def takes(given: str, files: ModelFiles) -> bool:
    """Whether it is a folder with the config of such a model."""
    config = Path(given) / "config.json"
    if not given or not config.is_file():
        return False
    said = read_json(config, error=ConfigurationError)
    return isinstance(said, dict) and "model_type" in said


def make(given: str, files: ModelFiles, device: str) -> NetworkFeatures:
    """The features; ConfigurationError where the folder cannot be loaded, lacks weights, or sees no images."""
    folder = Path(given)
    model, missing = load_pretrained(folder, device)
    rule, network = _rule(model, folder, missing)
    return NetworkFeatures(
        network,
        f"fid-{folder.resolve().name}",
        # What the folder lacks is drawn anew each time, and not looked at.
        f"{weights_hash({name: v for name, v in model.state_dict().items() if name not in missing})} {rule}",
        (files.channels, files.size, files.size),
        device,
        where=f"features {folder}",
        preparation=image_preparation(folder),
        gradients=True,
    )


def saved_as(folder: Path) -> str:
    """The class that a folder was saved as, empty where it does not say."""
    return str((read_json(folder / "config.json", error=ConfigurationError).get("architectures") or [""])[0])


def load_pretrained(folder: Path, device: str, ending: str = PROJECTED) -> tuple[nn.Module, set[str]]:
    """The model in float32 and evaluation mode, and the names of its weights that the folder does not hold.

    It is of the class that it was saved as where that ends with `ending`, and of the bare one without a head elsewhere.
    """
    with _quiet() as transformers:
        named = saved_as(folder)
        kind = getattr(transformers, named, None) if named.endswith(ending) else None
        try:
            model, told = (kind or transformers.AutoModel).from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True
            )
        except Exception as error:
            # From a missing file to a library that a model of this kind needs.
            raise ConfigurationError(f"{folder} is no model that transformers loads ({first_line(error)})") from None
    check_finite(model, folder, ConfigurationError)
    if wrong := sorted(map(str, told.get("mismatched_keys", ()))):
        raise ConfigurationError(f"{folder}: weights do not fit its config.json: {', '.join(wrong[:3])}")
    made: nn.Module = model.float().eval().requires_grad_(False).to(device)
    return made, set(told["missing_keys"])


def image_preparation(folder: Path) -> Preparation:
    """What the folder's image processor does, by the rule of `preparation.py`; ConfigurationError without one."""
    with _quiet() as transformers:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise ConfigurationError(
                f"{folder} has no image processor ({first_line(error)}): save it there with processor.save_pretrained"
            ) from None
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1 / 255
    if abs(factor * 255 - 1) > 1e-3:
        raise ConfigurationError(f"{folder}: its image processor scales values by {factor:g}, not by 1/255")
    normed = getattr(processor, "do_normalize", True)
    mean, std = (processor.image_mean, processor.image_std) if normed else (0.0, 1.0)
    cropped = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = processor.crop_size if cropped else processor.size if getattr(processor, "do_resize", True) else None
    values = (tuple(v) if isinstance(v, list | tuple) else float(v) for v in (mean, std))
    return Preparation(channels=3, size=_sides(size), **dict(zip(("mean", "std"), values, strict=True)))


def _sides(size: Any) -> tuple[int, int] | None:
    """(H, W) of a processor's size, which may be a number, both sides, or the shorter one."""
    if size is None or isinstance(size, int):
        return (size, size) if size else None
    names = ("height", "width", "shortest_edge")
    said = {name: n for name in names if (n := getattr(size, name, None) or _of(size, name))}
    if {"height", "width"} <= set(said):
        return said["height"], said["width"]
    return (said["shortest_edge"],) * 2 if "shortest_edge" in said else None


def _of(size: Any, name: str) -> int | None:
    return size.get(name) if hasattr(size, "get") else None


def _rule(model: Any, folder: Path, missing: set[str]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Which output is taken, and the network that gives it."""
    unheld = sorted(name for name in missing if "pooler" not in name)
    if unheld:
        raise ConfigurationError(f"{folder} lacks weights of its model: {', '.join(unheld[:3])}; save it again")
    if hasattr(model, "get_image_features"):
        return "image features", lambda images: embedded(model.get_image_features(pixel_values=images))
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise ConfigurationError(f"{folder} holds a {type(model).__name__}, which takes no images: give a vision model")

    def output(images: Tensor) -> Tensor:
        found = model(pixel_values=images)
        projected = getattr(found, "image_embeds", None)
        if projected is not None:
            return embedded(projected)
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None and not missing:
            return embedded(pooled)
        last = found.last_hidden_state
        return embedded(last[:, 0] if last.ndim == 3 else last)

    return "first token" if missing else "pooled", output


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; ConfigurationError without one."""
    with _quiet() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise ConfigurationError(
                f"{folder} has no tokenizer ({first_line(error)}): save it there with tokenizer.save_pretrained"
            ) from None


def embedded(found: Any) -> Tensor:
    """A tensor of embeddings: since version 5, `get_image_features` gives an output whose pooled part is projected."""
    tensor: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return tensor


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers, which says much while it loads; as it was afterwards."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


KIND = FeatureKind(make, takes, gradients=True)
