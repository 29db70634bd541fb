"""A model's files go through Ray's object store: read once, kept there once, fetched once by each machine."""

from __future__ import annotations

import ray
from ray.exceptions import RayError

from fewstep.errors import ConfigurationError
from fewstep.tasks.parcel import Parcel, packed
from fewstep.tasks.work import WorkerSettings


def broadcast(settings: WorkerSettings) -> Parcel:
    """The settings for workers on other machines, with what they name; ConfigurationError where it cannot be sent."""
    try:
        return packed(settings, ray.put)
    except (OSError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"the model's files cannot be sent to the cluster: {reason}; give Ray more memory for objects or more disk"
        ) from None
