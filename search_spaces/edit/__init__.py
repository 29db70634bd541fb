"""Edits: configs, and the space of them."""

from fewstep.search_spaces.edit.config import PUBLISHED, BoundaryConfig, EditConfig, Latent, Way

__all__ = [
    "PUBLISHED",
    "BoundaryConfig",
    "EditConfig",
    "Latent",
    "Way",
]
