"""The space of edits that the search walks in: edit step, latent, strengths, ways with their calls, noise, boundary.

A decision is an entry of a flat dictionary; what an earlier one makes irrelevant (the strength of a latent that is not
moved, the window of no noise) has no say, so that equal edits have equal hashes. Ranges: BoundaryDiffusion's defaults
and what lies around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.decisions import Choice, Decision, Range
from fewstep.search_spaces.edit import EditConfig, Way
from fewstep.search_spaces.point import EditPoint, Point, edit_of
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.space import DecisionSpace

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
# Places in a row of calls that `neighbours` goes.
NEAR_CALLS = 2


@dataclass(frozen=True)
class EditSpace(DecisionSpace[EditConfig]):
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

    def point(self, genome: EditConfig) -> EditPoint:
        """The edit as a point."""
        return EditPoint(edit=genome)

    def genome(self, point: Point) -> EditConfig:
        """The edit of a point; ScheduleError where it is none."""
        edit = edit_of(point)
        if edit is None:
            raise ScheduleError(f"{point.name} is no edit")
        return edit

    def beside(self, name: str, value: Any, reach: int = 1) -> list[Any]:
        """As any space, with calls two places in their row away."""
        return super().beside(name, value, NEAR_CALLS if name.endswith("_calls") else reach)

    def _way(self, name: str, values: Mapping[str, Any], kept: Way) -> Way:
        if name not in values:
            return kept
        by_hash = {schedule.hash: schedule for schedule in self.schedules}
        return by_hash.get(values[name], f"{values[name]}@{values[f'{name}_calls']}")
