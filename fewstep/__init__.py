"""fewstep: find the few-step sampler that fits a pretrained diffusion or flow model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.pipeline.api import evaluate, load_study, search
    from fewstep.pipeline.grid.api import GridView, grid
    from fewstep.pipeline.view import Evaluation, Found, StudyView
    from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
    from fewstep.tasks.quantization.storage import load_quantized
    from fewstep.tasks.sampling.scheduler import FewStepScheduler

# Imported when they are first used: `import fewstep` stays fast.
_HOMES = {
    "Evaluation": "pipeline.view",
    "Found": "pipeline.view",
    "StudyView": "pipeline.view",
    "GridView": "pipeline.grid.api",
    "evaluate": "pipeline.api",
    "grid": "pipeline.grid.api",
    "load_study": "pipeline.api",
    "search": "pipeline.api",
    "SolverSchedule": "search_spaces.schedule",
    "load_schedule": "search_spaces.schedule",
    "load_quantized": "tasks.quantization.storage",
    "FewStepScheduler": "tasks.sampling.scheduler",
    # diffusers looks for it where a saved pipeline's scheduler is defined, to know how that is loaded.
    "SchedulerMixin": "tasks.sampling.scheduler",
}

__all__ = [
    "Evaluation",
    "FewStepScheduler",
    "Found",
    "GridView",
    "SolverSchedule",
    "StudyView",
    "__version__",
    "evaluate",
    "grid",
    "load_quantized",
    "load_schedule",
    "load_study",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"fewstep.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
