"""fewstep: find the few-step sampler that fits a pretrained diffusion or flow model."""

__version__ = "0.1.0"
