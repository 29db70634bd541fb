"""What a pipeline is called with: prompts or labels of the images' indices, guidance, and what a user adds."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.image_file import read_levels
from fewstep.tasks.image_folder import SUFFIXES, find_images
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.pipelines.files import PipelineFiles

# Batches of prompts whose embeddings are kept.
KEPT = 64
COLOURS = 3


def call_arguments(
    files: PipelineFiles, conditions: Conditions, indices: Sequence[int], guidance: float
) -> dict[str, Any]:
    """Arguments of the pipeline's call for the images `indices`."""
    takes, count = files.takes, len(indices)
    found: dict[str, Any] = {
        # Some divide by it: two steps are what the puppet takes at most.
        "num_inference_steps": 2,
        # For what a pipeline draws by itself: its images' own noise is never drawn by it.
        "generator": [torch.Generator().manual_seed(i) for i in indices],
        "output_type": "np",
        "return_dict": False,
    }
    if "prompt" in takes:
        prompts = conditions.prompt_list
        found["prompt"] = [prompts[i % len(prompts)] for i in indices]
        if conditions.negative_prompt:
            found["negative_prompt"] = [conditions.negative_prompt] * count
    elif "class_labels" in takes:
        classes = files.classes or 0
        labels = [conditions.label(i, classes) for i in indices]
        found["class_labels"] = [classes if label is None else label for label in labels]
    elif "batch_size" in takes:
        found["batch_size"] = count
    if "guidance_scale" in takes:
        found["guidance_scale"] = guidance
    shown = conditions.shown_files
    for name, value in conditions.arguments.items():
        found[name] = [shown_image(shown[name], i) for i in indices] if name in shown else value
    return {name: value for name, value in found.items() if name in takes}


def check_arguments(files: PipelineFiles, conditions: Conditions) -> None:
    """ConfigurationError where a pipeline's call takes no such argument, or lacks one."""
    name, given = files.pipeline.__name__, conditions.arguments
    for argument in given:
        if argument not in files.arguments:
            raise ConfigurationError(f"{name} takes no {argument!r}: choose from {', '.join(files.arguments)}")
    for argument in files.needs:
        if argument not in given:
            raise ConfigurationError(f"{name} needs {argument}: give it as --call {argument}=VALUE (a file or folder)")


def shown_image(path: Path, index: int) -> Image.Image:
    """The image of a file; of a folder that of `index`, modulo their number."""
    return _opened(path if path.is_file() else _listed(path)[index % len(_listed(path))])


@cache
def _listed(folder: Path) -> list[Path]:
    found = find_images(folder).images
    if not found:
        raise DataError(f"no image in {folder}: put {', '.join(SUFFIXES)} files there")
    return found


@lru_cache(maxsize=256)
def _opened(path: Path) -> Image.Image:
    return Image.fromarray(read_levels(path, COLOURS).round().astype(np.uint8))


def remembered_prompts(pipe: Any) -> None:
    """Let a pipeline encode each batch of prompts once; whatever comes with tensors is encoded each time."""
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        return
    signature, kept = inspect.signature(encode), OrderedDict[str, Any]()

    def remembered(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        if any(isinstance(value, torch.Tensor) for value in given.values()):
            return encode(*arguments, **named)
        key = repr(sorted((name, repr(value)) for name, value in given.items()))
        if key not in kept:
            kept[key] = encode(*arguments, **named)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    pipe.encode_prompt = remembered
