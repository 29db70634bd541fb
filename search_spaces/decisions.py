"""What a decision of a flat space may be: one of a few values, or a number in a range.

Each can be drawn through an Optuna trial, drawn at random, moved a little, and written as features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

from fewstep.search_spaces.trials import Suggests


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    options: tuple[Any, ...]

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Draw through an Optuna trial."""
        return trial.suggest_categorical(name, list(self.options))

    def parameter(self, value: Any) -> Any:
        """What `suggest` has to draw for a value."""
        return value

    def nearest(self, value: Any) -> Any:
        """The option that comes closest: itself, the nearest number, or else the first option."""
        if value in self.options:
            return value
        numbers = [o for o in self.options if isinstance(o, int | float) and not isinstance(o, bool)]
        if not isinstance(value, int | float) or not numbers:
            return self.options[0]
        return min(numbers, key=lambda o: (abs(o - value), o))

    def draw(self, rng: Random) -> Any:
        """Any value, all alike."""
        return rng.choice(self.options)

    def nudge(self, value: Any, rng: Random) -> Any:
        """Another value, where there is one."""
        return rng.choice([o for o in self.options if o != value] or list(self.options))

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.options)

    def encode(self, value: Any) -> list[float]:
        """One feature an option."""
        return [float(value == option) for option in self.options]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, to three digits: finer differences are noise, and rounding makes hashes exact.

    `log`: equal ratios are equal steps. `whole`: only whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Draw through an Optuna trial; the parameter is the number's logarithm where `log` says so."""
        return self.nearest(self._back(trial.suggest_float(name, self._scaled(self.low), self._scaled(self.high))))

    def parameter(self, value: Any) -> Any:
        """What `suggest` has to draw for a value."""
        return min(max(self._scaled(value), self._scaled(self.low)), self._scaled(self.high))

    def nearest(self, value: Any) -> Any:
        """The number rounded and brought inside the range."""
        rounded = round(value) if self.whole else float(f"{value:.3g}" if self.log else f"{value:.4g}")
        return min(max(rounded, round(self.low) if self.whole else self.low), self.high)

    def draw(self, rng: Random) -> Any:
        """Any value, uniform in the scaled range."""
        return self.nearest(self._back(rng.uniform(self._scaled(self.low), self._scaled(self.high))))

    def nudge(self, value: Any, rng: Random) -> Any:
        """A value near by: a tenth to a third of the range away on average, cut at its ends."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        moved = self._scaled(value) + rng.gauss(0, rng.uniform(0.1, 0.35) * (high - low))
        return self.nearest(self._back(min(max(moved, low), high)))

    @property
    def width(self) -> int:
        """Number of features."""
        return 1

    def encode(self, value: Any) -> list[float]:
        """The place in the range, -1 to 1."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return [2 * (self._scaled(value) - low) / (high - low) - 1 if high > low else 0.0]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _back(self, value: float) -> float:
        return math.exp(value) if self.log else value


Decision = Choice | Range
