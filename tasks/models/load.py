"""The denoiser of a model: its network, or its whole pipeline."""

from __future__ import annotations

from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.model_files import ModelFiles
from fewstep.tasks.models.pipelines.files import PipelineFiles


def load_denoiser(files: ModelFiles, device: str = "cpu", conditions: Conditions | None = None) -> Denoiser:
    """Load it onto a device, under fixed conditions; ModelError where it does not load."""
    if isinstance(files, PipelineFiles):
        # Brings all of diffusers' pipelines.
        from fewstep.tasks.models.pipelines.denoiser import PipelineDenoiser

        return PipelineDenoiser(files, device, conditions)
    return Denoiser(files, device, conditions)
