"""What a space asks of an Optuna trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Suggests(Protocol):
    """The part of optuna.Trial that spaces use."""

    def suggest_float(self, name: str, low: float, high: float) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class Fixed:
    """A trial that answers from a mapping."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """The number of that name."""
        return float(self._values[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """The value of that name."""
        return self._values[name]
