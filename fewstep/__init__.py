"""fewstep: find the few-step sampler that fits a pretrained diffusion or flow model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
    from fewstep.tasks.quantization.storage import load_quantized
    from fewstep.tasks.sampling.scheduler import FewStepScheduler

__all__ = ["FewStepScheduler", "SolverSchedule", "__version__", "load_quantized", "load_schedule"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `import fewstep` stays fast."""
    if name in ("SolverSchedule", "load_schedule"):
        from fewstep.search_spaces import schedule

        return getattr(schedule, name)
    if name == "FewStepScheduler":
        from fewstep.tasks.sampling.scheduler import FewStepScheduler

        return FewStepScheduler
    if name == "load_quantized":
        from fewstep.tasks.quantization.storage import load_quantized

        return load_quantized
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
