"""How a table was made: command, date, seeds, machine class and interval."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime


def provenance(command: str, seeds: dict[str, int]) -> dict[str, str]:
    """How a table was made: command, date, seeds, machine class and interval."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items()),
        "machine": machine_class(),
        "interval": "95%, delete-a-group jackknife over the images",
    }


def footnote(command: str, seeds: dict[str, int], notes: Mapping[str, str] | None = None) -> str:
    """The same in one line, with notes, for the foot of a table."""
    return "; ".join(f"{name}: {value}" for name, value in (provenance(command, seeds) | dict(notes or {})).items())


def machine_class() -> str:
    """Cores and architecture, without anything that names the machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
