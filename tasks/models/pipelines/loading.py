"""Load a pipeline onto a device; ModelError where it does not load."""

from __future__ import annotations

from typing import Any

import torch

from fewstep.errors import ModelError
from fewstep.tasks.faults import first_line
from fewstep.tasks.models.checks import AFTERWARDS
from fewstep.tasks.models.finite import check_finite
from fewstep.tasks.models.loading import ENABLE, Loading
from fewstep.tasks.models.pipelines.files import PipelineFiles


def load_pipeline(files: PipelineFiles, device: str) -> Any:
    """The pipeline, without the parts that only look at finished images."""
    how = files.loading
    left_out: dict[str, Any] = {name: None for name in AFTERWARDS if name in files.index}
    if "requires_safety_checker" in files.index:
        left_out["requires_safety_checker"] = False
    try:
        pipe = files.pipeline.from_pretrained(str(files.root), torch_dtype=how.torch_dtype, **how.files, **left_out)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"{files.root} does not load: {first_line(error)}") from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            check_finite(part, files.root / name)
    pipe.set_progress_bar_config(disable=True)
    how.prepared(getattr(pipe, files.unet.name))
    for name in how.enable:
        _enable(pipe, name)
    return _placed(pipe, how, device)


def _enable(pipe: Any, name: str) -> None:
    known = {n.removeprefix(ENABLE): getattr(pipe, n) for n in dir(pipe) if n.startswith(ENABLE)}
    for part in ("vae", "unet", "transformer"):
        held = getattr(pipe, part, None)
        for method in (n for n in dir(held) if n.startswith(ENABLE)):
            known.setdefault(f"{part}_{method.removeprefix(ENABLE)}", getattr(held, method))
    if name not in known:
        raise ModelError(f"{type(pipe).__name__} has no {ENABLE}{name}: choose from {', '.join(sorted(known))}")
    try:
        known[name]()
    except Exception as error:  # What a method raises depends on what is installed.
        raise ModelError(f"{type(pipe).__name__}.{ENABLE}{name} failed: {error}") from error


def _placed(pipe: Any, how: Loading, device: str) -> Any:
    if not how.offload:
        return pipe.to(device)
    if device == "cpu":
        raise ModelError("offloading moves weights to a GPU when they are needed: there is none with --device cpu")
    try:
        move = pipe.enable_model_cpu_offload if how.offload == "model" else pipe.enable_sequential_cpu_offload
        move(device=device)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ModelError(f"--offload {how.offload} failed: {error}") from error
    return pipe
