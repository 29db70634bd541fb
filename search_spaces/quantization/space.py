"""The space of quantisation configs that the search walks in.

A decision is a field of `QuantizationConfig` with the values that are worth trying; some decisions only exist
where an earlier one calls for them. Members are kept in one form: what cannot change a network's outputs has its
default value, so that equal behaviour has an equal hash. Ranges: TFMQ-DM (2311.16503), and the authors' program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import numpy as np

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.decisions import Choice, Decision, Range
from fewstep.search_spaces.point import Point, QuantizationPoint, quantization_of
from fewstep.search_spaces.quantization import FULL_PRECISION, MOST_BITS, QuantizationConfig
from fewstep.search_spaces.space import Features, Space
from fewstep.search_spaces.trials import Suggests

RATE = 0.15
# A block of a few layers, without images: iterations cost it little, so it may have more of them.
TIAR_SHARE = 5
# Trajectories, the fewest and the most.
CALIBRATED_ON = 16, 256
_NOTHING_LEARNT: Mapping[str, Any] = {"solver": "adaround", "tiar_iterations": 0}
_DEFAULTS: Mapping[str, Any] = dict(QuantizationConfig())


_FLAG = Choice((False, True))


@dataclass(frozen=True)
class QuantizationSpace(Space[QuantizationConfig]):
    """Configs for a network that is calibrated along a schedule of `calls` denoiser calls.

    `iterations` is the most that reconstruction may spend on a unit (the temporal block TIAR_SHARE times as many);
    0 leaves learnt rounding out. Descent, which takes no iterations, is not held to it. `allot` has bits by layer too.
    """

    calls: int
    iterations: int = 400
    allot: bool = True

    def __post_init__(self) -> None:
        if self.calls < 1 or self.iterations < 0:
            raise ConfigurationError(
                f"a quantisation space of {self.calls} calls and {self.iterations} iterations is not possible: give "
                "at least one denoiser call, and no negative number of iterations"
            )

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """What is searched, by field, in the order in which it is decided."""
        learnt, tiar = self.iterations, TIAR_SHARE * self.iterations
        steps = [0, *sorted({n for n in (self.calls // 2, self.calls // 4) if n > 1}, reverse=True)]
        found: dict[str, Decision] = {
            "weight_bits": Choice((3, 4, 6, 8)),
            "activation_bits": Choice((6, 8, FULL_PRECISION)),
            "edge_bits": Choice((4, 6, 8, FULL_PRECISION)),
            **({"allocation": Choice(("even", "sensitivity"))} if self.allot else {}),
            "shortcuts": _FLAG,
            "samplers": _FLAG,
            "attention": _FLAG,
            "matmuls": _FLAG,
            "split_skips": _FLAG,
            "weight_range": Choice(("minmax", "search")),
            "granularity": Choice(("tensor", "token")),
            "activation_range": Choice(("minmax", "ema", "percentile", "mse")),
            "momentum": Range(0.9, 0.99),
            "percentile": Range(99.0, 99.99),
            "reconstruction": Choice(("none", "layer", "block") if learnt else ("none",)),
            "tib": Choice(("nearest", "layers", "tiar", "table") if learnt else ("nearest", "table")),
            "solver": Choice(("descent", "adaround", "hybrid")),
            "tib_bits": Choice((None, 4, 6, 8)),
            "fsc": Choice(("none", "tib", "all")),
            "images": Range(*CALIBRATED_ON, log=True, whole=True),
            "steps": Choice(tuple(steps)),
        }
        if learnt:
            found |= {
                "tiar_iterations": Range(max(1, min(200, tiar // 2)), min(tiar, 20_000), log=True, whole=True),
                "tiar_rate": Range(1e-4, 1e-2, log=True),
                "iterations": Range(max(1, min(50, learnt // 2)), min(learnt, 20_000), log=True, whole=True),
                "rate": Range(1e-3, 1e-1, log=True),
                "batch": Choice((8, 16, 32)),
                "rounding_weight": Range(1e-3, 1e-1, log=True),
                "warmup": Range(0.0, 0.4),
                "sweeps": Range(1, 12, whole=True),
                "restarts": Range(0, 60, whole=True),
            }
        else:
            del found["solver"]
        return found

    # -- members --------------------------------------------------------------------------------------

    def member(self, config: QuantizationConfig) -> QuantizationConfig:
        """The member that comes closest: every relevant field brought into its range, all others at their defaults.

        Changes no member.
        """
        values = dict(config)
        if values["steps"] >= self.calls:
            values["steps"] = 0
        if values["tib_bits"] == values["weight_bits"]:
            values["tib_bits"] = None
        return self._settled(values)

    def _settled(self, given: Mapping[str, Any]) -> QuantizationConfig:
        """A config of decided fields; what is not relevant to them falls back to its default."""
        values = dict(_DEFAULTS)
        for name, decision in self.decisions.items():
            if self._relevant(name, values):
                values[name] = decision.nearest(given.get(name, values[name]))
            self._merge(name, values)
        if not self.iterations and values["tib"] == "table":
            # The table's rounding for other timesteps is learnt too: here it is the nearest.
            values |= _NOTHING_LEARNT
        return QuantizationConfig.build(**values)

    def _relevant(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a field can change anything, given the fields that are decided before it."""
        activations = bool(values["activation_bits"] != FULL_PRECISION)
        learnt = bool(values["reconstruction"] != "none")
        block = bool(values["tib"] in ("tiar", "table"))
        descent, adaround = values["solver"] == "descent", values["solver"] == "adaround"
        match name:
            case "allocation":
                # At the most bits that a layer may have nothing can be moved.
                return bool(values["weight_bits"] < MOST_BITS)
            case "matmuls" | "granularity" | "activation_range" | "fsc":
                return activations
            case "momentum":
                return activations and str(values["activation_range"]) == "ema"
            case "percentile":
                return activations and str(values["activation_range"]) == "percentile"
            case "solver":
                return learnt or block
            case "iterations" | "rate" | "batch":
                return learnt and not descent
            case "tiar_iterations" | "tiar_rate":
                return block and adaround
            case "rounding_weight" | "warmup":
                return (learnt and not descent) or (block and adaround)
            case "sweeps":
                return (learnt and descent) or (block and not adaround)
            case "restarts":
                return block and not adaround
            case "images" | "steps":
                return activations or learnt or block
            case _:
                return True

    def _merge(self, name: str, values: dict[str, Any]) -> None:
        """Write one behaviour one way, once `name` is decided."""
        if name == "tib" and values["tib"] == "layers" and values["reconstruction"] == "none":
            values["tib"] = "nearest"
        if name == "solver" and values[name] == "hybrid" and values["tib"] not in ("tiar", "table"):
            values[name] = "adaround"
        if name == "solver" and values[name] == "hybrid" and values["reconstruction"] == "none":
            values[name] = "descent"
        if name == "solver" and values[name] == "descent" and values["reconstruction"] == "layer":
            # Descent goes layer after layer in any case.
            values["reconstruction"] = "block"
        if name == "tib_bits" and values["tib_bits"] == values["weight_bits"]:
            values["tib_bits"] = None
        # The block's layers are linear ones, whose rows find their own ranges.
        if name == "fsc" and values["fsc"] == "tib" and values["granularity"] == "token":
            values["fsc"] = "none"

    def relevant(self, config: QuantizationConfig) -> Iterator[str]:
        """The decisions that a member has."""
        values = dict(config)
        return (name for name in self.decisions if self._relevant(name, values))

    # -- to and from parameters -----------------------------------------------------------------------

    def suggest(self, trial: Suggests) -> QuantizationConfig:
        """Draw a member through an Optuna trial. A parameter has the name of its field, see `parameters`."""
        values = dict(_DEFAULTS)
        drawn: dict[str, Any] = {}
        for name, decision in self.decisions.items():
            if self._relevant(name, values):
                values[name] = drawn[name] = decision.suggest(trial, name)
            self._merge(name, values)
        return self._settled(drawn)

    def parameters(self, config: QuantizationConfig) -> dict[str, Any]:
        """Flat parameters of a config: what `suggest` would have drawn for its member."""
        member = self.member(config)
        return {name: self.decisions[name].parameter(getattr(member, name)) for name in self.relevant(member)}

    # -- variation ------------------------------------------------------------------------------------

    def random(self, nfe: int, rng: Random) -> QuantizationConfig:
        """Any member, every decision drawn on its own."""
        return self._settled({name: decision.draw(rng) for name, decision in self.decisions.items()})

    def mutate(self, config: QuantizationConfig, rng: Random, rate: float | None = None) -> QuantizationConfig:
        """Change each relevant decision with probability `rate`, at least one."""
        member = self.member(config)
        names = list(self.relevant(member))
        for _ in range(50):
            chosen = [name for name in names if rng.random() < (rate or RATE)] or [rng.choice(names)]
            values = {name: getattr(member, name) for name in names}
            values |= {name: self.decisions[name].nudge(values[name], rng) for name in chosen}
            child = self._settled(values)
            if child != member:
                return child
        return self.random(0, rng)

    def cross(self, a: QuantizationConfig, b: QuantizationConfig, rng: Random) -> QuantizationConfig:
        """Every decision from one of the two, at random."""
        a, b = self.member(a), self.member(b)
        return self._settled({name: getattr(rng.choice((a, b)), name) for name in self.decisions})

    def encode(self, config: QuantizationConfig) -> Features:
        """(1, `width`) features, each in [-1, 1]; those of decisions that the member does not have are 0."""
        member = self.member(config)
        has = set(self.relevant(member))
        rows = (
            decision.encode(getattr(member, name)) if name in has else [0.0] * decision.width
            for name, decision in self.decisions.items()
        )
        return np.asarray([[value for row in rows for value in row]], np.float32)

    def suggest_all(self, trial: Suggests) -> None:
        """Ask for every decision, relevant or not."""
        for name, decision in self.decisions.items():
            decision.suggest(trial, name)

    def point(self, config: QuantizationConfig) -> QuantizationPoint:
        """The config as a point."""
        return QuantizationPoint(config=config)

    def genome(self, point: Point) -> QuantizationConfig:
        """The config of a point; ScheduleError where it has none."""
        config = quantization_of(point)
        if config is None:
            raise ScheduleError(f"{point.name} has no quantisation")
        return config

    @property
    def width(self) -> int:
        """Number of features."""
        return sum(decision.width for decision in self.decisions.values())
