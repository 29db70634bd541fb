"""How a worker changes the network for a caching point."""

from __future__ import annotations

import copy
from typing import Any

import torch

from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.rendering import Changed


class CachingRenderer:
    """Made with the worker, as every renderer is."""

    def __init__(self, worker: Any) -> None:
        pass

    def denoiser(self, point: Any, denoiser: Denoiser) -> Changed:
        """The denoiser with a network of its own, and how many bottlenecks a trajectory computes."""
        changed = copy.copy(denoiser)
        changed.network = copy.deepcopy(denoiser.network)
        changed.calls = 0
        _cache(changed.network.module, frozenset(point.reused))
        # Against one call: the search minimises it beside the quality.
        return Changed(changed, {"bottlenecks": -float(len(point.reused))})


def _cache(unet: Any, reused: frozenset[int]) -> None:
    """Count a trajectory's calls by its falling times, and reuse what the bottleneck gave."""
    state: dict[str, Any] = {"time": float("-inf"), "call": 0, "kept": None}
    compute = unet.mid_block.forward

    def before(module: Any, args: tuple[Any, ...]) -> None:
        time = float(torch.as_tensor(args[1]).max())
        state["call"] = state["call"] + 1 if time < state["time"] else 0
        state["time"] = time

    def forward(*args: Any, **kwargs: Any) -> Any:
        if state["call"] not in reused:
            state["kept"] = compute(*args, **kwargs)
        return state["kept"]

    unet.register_forward_pre_hook(before)
    unet.mid_block.forward = forward
