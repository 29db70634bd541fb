"""A trial that answers a space from parameters that are known, and notes which it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any


class Drawn:
    """Trial `number`: what of `parameters` is in a question's range is the answer, what is not is drawn at random.

    `parameters` are in the end those that were asked for, in that order.
    """

    def __init__(self, number: int, parameters: Mapping[str, Any], seed: str) -> None:
        self.number, self._given, self._seed = number, parameters, seed
        self.parameters: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number in [low, high]."""
        value = self._given.get(name)
        if value is None or not low <= value <= high:
            value = self._rng(name).uniform(low, high)
        return float(self.parameters.setdefault(name, float(value)))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of the choices."""
        value = self._given.get(name)
        if name not in self._given or value not in choices:
            value = self._rng(name).choice(list(choices))
        return self.parameters.setdefault(name, choices[list(choices).index(value)])

    def _rng(self, name: str) -> Random:
        return Random(f"{self._seed}/{name}")
