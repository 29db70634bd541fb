"""Which settings of a search go together: one function a rule, which raises a ValueError that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fewstep.pipeline.measured_settings import FRECHET
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.solver_space import EXTRA_DECISIONS
from fewstep.tasks.sampling.grids import GRIDS

if TYPE_CHECKING:
    from fewstep.pipeline.settings import SearchSettings

AUTO, NO_GUARD = "auto", "none"
POPULATIONS = ("nsgaii", "nsgaiii")
# Settings that have no part in what is searched: in spaces with a change of the network, and in that of schedules.
FOR_SCHEDULES = (
    *("presets", "preset_images", "paired_images", "look_images", "grids", "finalists", "refined_elites", "refine_to"),
    "random_trials",
)
QUANTIZED = ("calibration_iterations", "allot_bits")
FOR_NETWORKS = ("front", *QUANTIZED)


def _consistent(s: SearchSettings) -> None:
    """Numbers, shares and names fit one another."""
    bad = [n for n in s.nfes if not 1 <= n <= 100]
    if bad or not s.nfes:
        raise ValueError(f"NFE {bad[0] if bad else '(none)'} is not possible: give 1 to 100 denoiser calls")
    if len(set(s.nfes)) != len(s.nfes):
        raise ValueError(f"NFE {s.nfes} has duplicates")
    look, judged = s.look_images, s.frechet_images
    if s.screen == "frechet" and look is not None and judged is not None and look >= judged:
        raise ValueError(
            f"look_images {look} must be below frechet_images {judged}: the main rung extends the screen's images"
        )
    shares = s.presets * (s.space == "schedule") + (s.refine or 0) + s.finals
    if shares > 0.9:
        raise ValueError(
            f"presets {s.presets}, refine {s.refine} and finals {s.finals} leave {1 - shares:.2f} of the "
            "budget to search with: together at most 0.9"
        )
    if not s.grids or not set(s.grids) <= set(GRIDS):
        raise ValueError(f"grids {', '.join(s.grids)}: choose from {', '.join(GRIDS)}")
    if s.screen == "paired" and (s.objective.partition(":")[0] != FRECHET or s.paired_images < 2):
        raise ValueError(
            f"a paired screen guesses the Frechet distance from two images at least, not {s.objective} from "
            f"{s.paired_images}: choose another --screen"
        )
    if s.population and s.sampler not in POPULATIONS:
        raise ValueError(f"a population is that of sampler {' or '.join(POPULATIONS)}, not of {s.sampler}")
    unknown = [name for name in s.decisions if name not in EXTRA_DECISIONS]
    if unknown:
        raise ValueError(f"unknown decision {unknown[0]!r}: choose from {', '.join(EXTRA_DECISIONS)}")
    if s.guidance_range and not 0 <= s.guidance_range[0] < s.guidance_range[1]:
        raise ValueError(f"guidance range {s.guidance_range}: give a lower and a higher scale, as 1:8")


def _can_be_tuned(s: SearchSettings) -> None:
    """What tunes the best can tune what is searched."""
    if not s.refine:
        return
    if s.space != "schedule" or s.quantized:
        raise ValueError("only schedules of networks that are not quantised are tuned: leave --refine away")
    if s.refine_to in ("moments", "reference") and s.objective != FRECHET:
        raise ValueError(
            f"tuning to {s.refine_to} descends the Frechet distance, and candidates are compared by "
            f"{s.objective}: leave --refine away, or give --refine-to network, pixel or features"
        )


def _can_be_guarded(s: SearchSettings) -> None:
    """A guard is a metric that the search does not see, and that the finals can use."""
    if s.guard in (AUTO, NO_GUARD):
        return
    from fewstep.tasks.metrics.metric import metric_class

    if s.space != "schedule":
        raise ValueError(f"space {s.space!r} has no finals by one metric to guard: leave --guard away")
    if s.guard == s.objective:
        raise ValueError(f"the search sees {s.guard} already: guard it by another metric, or by none")
    if not metric_class(s.guard).grows or metric_class(s.guard).taught:
        raise ValueError(f"{s.guard} does not add up over images as a guard must: give frechet:FEATURES or kid")
    if s.finalists < 2:
        raise ValueError("a guard compares the finals' best with a preset: give at least two --set finalists")


def _can_be_learned(s: SearchSettings) -> None:
    """A surrogate can learn the objective."""
    if s.objective != FRECHET and s.surrogate in ("encoder", "ensemble"):
        from fewstep.tasks.metrics.metric import metric_class

        if metric_class(s.objective).signed:
            raise ValueError(
                f"surrogate {s.surrogate!r} learns logarithms, and {s.objective} may be below 0: choose "
                "forest, trees, gp or none"
            )


def _fits_its_space(s: SearchSettings) -> None:
    """Sampler, screen and network are such as the space can have."""
    if s.space == "schedule":
        if s.base_schedule:
            raise ValueError("a schedule to calibrate with needs a space with quantisation: quantization or joint")
        return
    if s.screen not in ("auto", "distance"):
        raise ValueError(f"space {s.space!r} screens by the distance to the teacher: leave --screen away")
    if s.sampler == "cmaes":
        raise ValueError(f"sampler 'cmaes' has one objective, space {s.space!r} has several: choose another")
    if s.quantized:
        raise ValueError(
            f"space {s.space!r} makes quantised networks of its own: leave --quantized away, or search space "
            "'schedule' for the one that you have"
        )
    if not s.moves_schedule:
        _fits_one_schedule(s)


def _fits_one_schedule(s: SearchSettings) -> None:
    """Configs can be searched for the base schedule as it is."""
    if not s.base_schedule:
        raise ValueError(f"space {s.space!r} needs the schedule that is kept: --schedule PRESET/GRID@CALLS or FILE")
    calls = SolverSchedule.from_json(s.base_schedule).nfe
    if s.nfes != (calls,):
        raise ValueError(f"the schedule has {calls} calls, not {s.nfes}: leave --nfe away, or search space 'joint'")
    changing = {"warm_start": s.warm_start, "decisions": s.decisions, "guidance_range": s.guidance_range}
    for name, given in changing.items():
        if given:
            raise ValueError(f"{name} changes schedules, which space {s.space!r} keeps: search 'joint'")


def has_a_part(s: SearchSettings) -> None:
    """ValueError for a setting that was given and does nothing in this search."""
    if s.surrogate != "none" and s.sampler != "s3":
        raise ValueError(f"a surrogate ranks the children of sampler s3, not of {s.sampler}: leave it away")
    idle = FOR_NETWORKS if s.space == "schedule" else FOR_SCHEDULES
    if s.space not in ("schedule", "joint") and "quantization" not in s.space.split("+"):
        idle = (*idle, *QUANTIZED)
    for name in idle:
        if getattr(s, name) != type(s).model_fields[name].default:
            raise ValueError(f"{name} has no part in a search of space {s.space!r}: leave it away")


RULES: tuple[Callable[[SearchSettings], None], ...] = (
    _consistent,
    _can_be_tuned,
    _can_be_guarded,
    _can_be_learned,
    _fits_its_space,
)
