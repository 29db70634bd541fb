"""Things that are found by name: our own, listed in one line each, and those that other packages bring.

Another package offers one through an entry point of the group `fewstep.KINDs`, such as `fewstep.metrics`, or of the
group that the registry names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fewstep.errors import ConfigurationError


class Registry:
    """What has the names of one `kind`; `own` are ours, as `module:attribute`, loaded when they are asked for."""

    def __init__(self, kind: str, own: Mapping[str, str], group: str = "") -> None:
        self.kind, self.own = kind, own
        # The group of entry points that other packages use.
        self.group = group or f"fewstep.{kind}s"

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self.own}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, ours first."""
        return (*self.own, *sorted(self._others))

    def checked(self, name: str) -> str:
        """The name; ConfigurationError with the known ones where there is none of it."""
        if name not in self.own and name not in self._others:
            raise ConfigurationError(f"unknown {self.kind} {name!r}: choose one of {', '.join(self.names)}")
        return name

    def load(self, name: str) -> Any:
        """What has the name. ConfigurationError where nothing has, or where it cannot be imported."""
        self.checked(name)
        place = self.own.get(name) or self._others[name].value
        module, _, attribute = place.partition(":")
        try:
            # Metrics are looked up several times a record.
            return getattr(sys.modules.get(module) or import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"{self.kind} {name!r} ({place}) cannot be loaded: {error}") from error
