"""Find and check a model without loading its network: what the driver needs to plan a search.

Accepted: a bundled model's name, a diffusers pipeline's directory or its name on the hub, or a bare UNet2DModel or
DiTTransformer2DModel directory with a `scheduler_config.json` in it or in `scheduler/`. What of a pipeline the executor
can sample by itself, it does (`unet/` or `transformer/`, `scheduler/`; with `vae/` the network works on latents, with
`text_encoder/` and `tokenizer/` it takes prompts; with `condition/` it is shown a part of an image or a layout, in
input channels behind its latents). Any other pipeline is called whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fewstep.errors import ModelError
from fewstep.tasks.models.checks import UnsupportedModelError, check_files
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.hub import hub_folder, is_hub_name
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.models.model_files import FOLDERS, OWN_FILE, ZOO, ModelFiles
from fewstep.tasks.models.pipelines.files import find_pipeline, is_native, is_pipeline

__all__ = ["OWN_FILE", "ZOO", "ModelFiles", "bundled_models", "files_of", "find_model", "zoo_names"]


def zoo_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(p.name for p in ZOO.iterdir() if (p / "model_index.json").is_file()) if ZOO.is_dir() else []


class Asked(Protocol):
    """Settings that name a model, what takes its network's place, what it is asked for, and how it is held."""

    @property
    def model(self) -> str: ...
    @property
    def quantized(self) -> str: ...
    @property
    def conditions(self) -> Conditions: ...
    @property
    def loading(self) -> Loading: ...


def files_of(asked: Asked) -> ModelFiles:
    """The model that settings name, see `find_model`."""
    return find_model(asked.model, asked.quantized, asked.conditions, asked.loading)


def find_model(
    model: str, quantized: str = "", conditions: Conditions | None = None, loading: Loading | None = None
) -> ModelFiles:
    """Resolve a zoo name or a directory; ModelError says what is missing and where it was looked for.

    `quantized` is the folder of a quantised network of that model, or empty. Conditions that are arguments of a
    pipeline's call, and ways of loading that only a pipeline knows, have a model sampled by its pipeline.
    """
    root, name = (ZOO / model if model in zoo_names() else Path(model)), ""
    if not root.is_dir() and is_hub_name(model):
        root, name = hub_folder(model, loading.variant if loading else ""), model.rpartition("/")[2]
    if not root.is_dir():
        raise ModelError(
            f"no model {model!r}: give a diffusers directory, a name on the hub, or one of the bundled models "
            f"({', '.join(zoo_names())})"
        )
    files = _as_it_is_sampled(root, conditions or Conditions(), loading or Loading())
    files = replace(files, name=name) if name else files
    return files.with_quantized(quantized) if quantized else files


def _as_it_is_sampled(root: Path, conditions: Conditions, loading: Loading) -> ModelFiles:
    """A model that the executor samples by itself, or else a pipeline that is called whole."""
    whole = bool(conditions.arguments) or loading.of_pipelines
    if not is_native(root) or (whole and is_pipeline(root)):
        return find_pipeline(root, loading, *conditions.sides)
    if loading.of_pipelines:
        raise ModelError(f"{root} is no pipeline of its own: offload and enable are for pipelines, leave them out")
    files = replace(_located(root), loading=loading)
    try:
        check_files(files)
    except UnsupportedModelError:
        if not is_pipeline(root):
            raise
        return find_pipeline(root, loading, *conditions.sides)
    return files


def bundled_models() -> list[ModelFiles]:
    """The bundled models, as they came: nothing is checked, which would import diffusers."""
    return [_located(ZOO / name) for name in zoo_names()]


def _located(root: Path) -> ModelFiles:
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
    return ModelFiles(root.absolute().name, root, unet, places[0])
