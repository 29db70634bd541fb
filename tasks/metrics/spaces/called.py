"""Features of MODULE:CALLABLE: a function without arguments, or a class, that gives a network; or a network itself.

The network, a torch.nn.Module or any callable, takes images (N, C, H, W) in [-1, 1] and gives features (N, D). What
decides about its values is the callable's name, its source file, that of the network's class, and the weights of a
Module; what they import besides is not looked at.
"""

from __future__ import annotations

from torch import nn

from fewstep.errors import ConfigurationError
from fewstep.tasks.metrics.spaces.kind import FeatureKind
from fewstep.tasks.metrics.spaces.loaded import address, is_loadable, load, needs_arguments, short_name
from fewstep.tasks.metrics.spaces.network import NetworkFeatures
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.finite import check_finite


def takes(given: str, files: ModelFiles) -> bool:
    """Whether it is written so."""
    return is_loadable(given)


def make(given: str, files: ModelFiles, device: str) -> NetworkFeatures:
    """The features; ConfigurationError where it gives no network, or one that does not take the model's images."""
    loaded, what = load(given, "features"), f"features {given}"
    network = loaded
    if not isinstance(loaded, nn.Module):
        if not callable(loaded) or needs_arguments(loaded):
            raise ConfigurationError(
                f"{what}: {'it takes arguments' if callable(loaded) else 'it cannot be called'}; give a function "
                "without arguments that returns the network, images (N, C, H, W) in [-1, 1] -> features (N, D)"
            )
        try:
            network = loaded()
        except Exception as error:
            raise ConfigurationError(f"{what} fails: {type(error).__name__}: {error}") from None
    if not callable(network):
        raise ConfigurationError(f"{what} gives {type(network).__name__}, which takes no images: return a network")
    if isinstance(network, nn.Module):
        network = network.to(device).eval().requires_grad_(False)
        check_finite(network, what, ConfigurationError)
    return NetworkFeatures(
        network,
        f"fid-{short_name(given)}",
        address(given, loaded, network),
        (files.channels, files.size, files.size),
        device,
        where=what,
        advice="it gets images (N, C, H, W) in [-1, 1] and gives features (N, D)",
        gradients=isinstance(network, nn.Module),
    )


KIND = FeatureKind(make, takes, gradients=True)
