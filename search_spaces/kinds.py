"""Spaces by name, those of other packages too: an entry point of the group `fewstep.spaces` names a `SpaceKind`."""

from __future__ import annotations

from fewstep.plugins import Registry

# Ours are more than a kind of point: `pipeline/problems` says how each is searched.
SPACES = Registry(
    "space",
    {
        "schedule": "fewstep.search_spaces.schedule.space:ScheduleSpace",
        "quantization": "fewstep.search_spaces.quantization.space:QuantizationSpace",
        "edit": "fewstep.search_spaces.edit.space:EditSpace",
    },
)
