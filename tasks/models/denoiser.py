"""Load a network and give it the one interface the samplers use: (x, time) -> eps.

Shapes: x and eps (B, C, H, W) float32; time is one Python number for the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ModelError
from fewstep.tasks.models.files import ModelFiles


class Denoiser:
    """A pretrained network as a noise predictor, whatever it was trained to predict.

    A model that was trained with labels is asked with its null label.
    """

    def __init__(self, files: ModelFiles, device: str = "cpu") -> None:
        from diffusers import UNet2DModel

        self.files, self.device = files, device
        try:
            network: Any = UNet2DModel.from_pretrained(
                str(files.unet), torch_dtype=torch.float32, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{files.unet}: the weights do not load: {str(error).splitlines()[0]}") from error
        self.network = network.eval().requires_grad_(False).to(device)
        self.calls = 0

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """Predicted noise; counts one call an image."""
        self.calls += len(x)
        label = self.files.null_label
        labels = None if label is None else torch.full((len(x),), label, device=x.device)
        output: Tensor = self.network(x, time, labels).sample
        if self.files.prediction_type == "epsilon":
            return output
        noise = self.files.noise
        alpha, sigma = noise.alpha_sigma(noise.lambda_at(time))
        if self.files.prediction_type == "sample":
            return (x - alpha * output) / sigma
        return alpha * output + sigma * x
