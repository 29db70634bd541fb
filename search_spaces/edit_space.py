"""The space of edits that the search walks in: edit step, latent, strengths, ways with their calls, noise, boundary.

A decision is an entry of a flat dictionary; what an earlier one makes irrelevant (the strength of a latent that is not
moved, the window of no noise) has no say, so that equal edits have equal hashes. Ranges: BoundaryDiffusion's defaults
and what lies around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.decisions import Choice, Decision, Range
from fewstep.search_spaces.edit import EditConfig, Way
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.solver_space import Suggests

# Noise prediction inverts stably: run towards noise, data prediction amplifies its errors by sigma's growth.
INVERSIONS = ("ddim/uniform-t", "dpm-solver-2m/uniform-t", "dpm-solver-2m/uniform-lambda")
GENERATIONS = (
    "ddim/uniform-t",
    "dpmpp-2m/uniform-t",
    "dpmpp-2m/uniform-lambda-zero",
    "unipc-2-bh2/quadratic-zero",
)
INVERSION_CALLS = (4, 6, 8, 10, 14, 20, 28, 40)
GENERATION_CALLS = (3, 4, 5, 6, 8, 10, 14, 20, 28, 40)
STRENGTH = Range(0.5, 8.0)
ETAS = (0.0, 0.25, 0.5, 1.0)
WINDOWS = {"all": (0.0, 1.0), "first-half": (0.0, 0.5), "second-half": (0.5, 1.0), "first-quarter": (0.0, 0.25)}
DECISIONS = ("step", "latent", "strength", "inversion", "generation", "eta", "rescale", "boundary")
FLAG = Choice((False, True))
# How far `neighbours` goes: a strength's ratio, that of what is on a log scale, and places in a row of calls.
NEAR, NEAR_LOG, NEAR_CALLS = 1.1, 2.0, 2


@dataclass(frozen=True)
class EditSpace:
    """Edits at one of `steps` (lambdas), with boundaries from up to `examples` images a side.

    `schedules` are solver schedules that may be stretched over either way instead of a preset. `kept` are decisions
    that stay as `base` has them.
    """

    steps: tuple[float, ...]
    examples: int
    base: EditConfig
    schedules: tuple[SolverSchedule, ...] = ()
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigurationError("a space of edits needs at least one edit step")
        unknown = sorted(set(self.kept) - set(DECISIONS))
        if unknown:
            raise ConfigurationError(f"unknown decision {unknown[0]!r}: choose among {', '.join(DECISIONS)}")

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """What is searched, by parameter."""
        counts = sorted({max(8, self.examples // 4), max(8, self.examples // 2), self.examples})
        schedules = [schedule.hash for schedule in self.schedules]
        groups: dict[str, dict[str, Decision]] = {
            "step": {"step": Choice(self.steps)},
            "latent": {"latent": Choice(("z", "h", "both"))},
            "strength": {"strength_z": STRENGTH, "strength_h": STRENGTH},
            "inversion": {
                "inversion": Choice((*INVERSIONS, *schedules)),
                "inversion_calls": Choice(INVERSION_CALLS),
            },
            "generation": {
                "generation": Choice((*GENERATIONS, *schedules)),
                "generation_calls": Choice(GENERATION_CALLS),
            },
            "eta": {"eta": Choice(ETAS), "eta_window": Choice(tuple(WINDOWS))},
            "rescale": {"rescale": FLAG},
            "boundary": {"C": Range(1e-4, 10.0, log=True), "standardise": FLAG, "images": Choice(tuple(counts))},
        }
        return {name: d for group, found in groups.items() if group not in self.kept for name, d in found.items()}

    def suggest(self, trial: Suggests) -> EditConfig:
        """A member, every parameter drawn through a trial; the space is the same for every member."""
        return self.config({name: decision.suggest(trial, name) for name, decision in self.decisions.items()})

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What `suggest` has to draw for the values of the parameters; ones that are not searched are left out."""
        return {name: d.parameter(d.nearest(values[name])) for name, d in self.decisions.items() if name in values}

    def config(self, values: Mapping[str, Any]) -> EditConfig:
        """The edit that the values mean."""
        base = self.base
        latent = values.get("latent", base.latent)
        eta = values.get("eta", base.eta)
        window = WINDOWS[values["eta_window"]] if "eta_window" in values else base.eta_window
        boundary = base.boundary
        if "C" in values:
            boundary = boundary.model_copy(update={name: values[name] for name in ("C", "standardise", "images")})
        moves_z, moves_h = latent in ("z", "both"), latent in ("h", "both")
        return EditConfig.build(
            step=values.get("step", base.step),
            latent=latent,
            strength_z=values.get("strength_z", base.strength_z) if moves_z else 0.0,
            strength_h=values.get("strength_h", base.strength_h) if moves_h else 0.0,
            inversion=self._way("inversion", values, base.inversion),
            generation=self._way("generation", values, base.generation),
            eta=eta,
            eta_window=window if eta else (0.0, 1.0),
            rescale=values.get("rescale", base.rescale) if moves_z else False,
            boundary=boundary,
        )

    def values(self, config: EditConfig) -> dict[str, Any]:
        """Values of the parameters that come closest to a config; `config` brings what is in the space back."""
        found: dict[str, Any] = {
            "step": min(self.steps, key=lambda s: abs(s - config.step)),
            "latent": config.latent,
            "strength_z": config.strength_z or STRENGTH.low,
            "strength_h": config.strength_h or STRENGTH.low,
            "eta": config.eta,
            "eta_window": next((name for name, ends in WINDOWS.items() if ends == config.eta_window), ""),
            "rescale": config.rescale,
            **config.boundary.model_dump(),
        }
        for name in ("inversion", "generation"):
            way = getattr(config, name)
            solver, _, calls = (way, "", "") if isinstance(way, SolverSchedule) else way.partition("@")
            found[name] = solver.hash if isinstance(solver, SolverSchedule) else solver
            found[f"{name}_calls"] = int(calls) if calls else way.nfe
        return {name: decision.nearest(found[name]) for name, decision in self.decisions.items()}

    def neighbours(self, config: EditConfig, names: Sequence[str]) -> list[EditConfig]:
        """Edits that differ from a member in one of the named parameters, each once and not by much.

        Parameters that are not searched stay.
        """
        values, found = self.values(config), {config.hash: config}
        for name in (n for n in names if n in self.decisions):
            for value in _beside(name, self.decisions[name], values[name]):
                other = self.config(values | {name: value})
                found.setdefault(other.hash, other)
        return list(found.values())[1:]

    def _way(self, name: str, values: Mapping[str, Any], kept: Way) -> Way:
        if name not in values:
            return kept
        by_hash = {schedule.hash: schedule for schedule in self.schedules}
        return by_hash.get(values[name], f"{values[name]}@{values[f'{name}_calls']}")


def _beside(name: str, decision: Decision, value: Any) -> list[Any]:
    """Values near one: the options next to a number, all other names, a ratio up and down."""
    if isinstance(decision, Range):
        ratio = NEAR_LOG if decision.log else NEAR
        return [decision.nearest(value / ratio), decision.nearest(value * ratio)]
    if not all(isinstance(o, int | float) and not isinstance(o, bool) for o in decision.options):
        return [o for o in decision.options if o != value]
    row, reach = sorted(decision.options), NEAR_CALLS if name.endswith("_calls") else 1
    place = row.index(value)
    return [o for o in row[max(0, place - reach) : place + reach + 1] if o != value]
