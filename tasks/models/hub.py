"""Models by their name on the Hugging Face hub, ORGANISATION/NAME: from the local cache, or downloaded into it."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.errors import ModelError
from fewstep.tasks.faults import first_line

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(model: str) -> bool:
    """Whether a text that is no folder can be a name on the hub."""
    return bool(NAME.fullmatch(model)) and not model.startswith(".")


def hub_folder(model: str, variant: str = "") -> Path:
    """The folder of a pipeline's files; nothing is asked of the hub where they are all in the cache.

    Raises ModelError where they are neither there nor to be had.
    """
    from diffusers import DiffusionPipeline

    asked = {"variant": variant} if variant else {}
    try:
        return Path(DiffusionPipeline.download(model, local_files_only=True, **asked))
    except Exception:  # Whatever keeps them from being found here, the hub decides.
        pass
    try:
        return Path(DiffusionPipeline.download(model, **asked))
    except Exception as error:
        raise ModelError(f"no model {model!r}: it is no folder, and the hub gave none: {first_line(error)}") from error
