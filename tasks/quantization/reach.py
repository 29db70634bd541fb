"""Whether a schedule asks a quantised network for times that it was not calibrated near, and saying so once.

The temporal block holds at every time. What else is quantised has grids for the times of its calibration, interpolated
in between; beyond them there is nothing to go by.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.quantization.storage import find_quantized

# A time is far from calibrated ones where its lambda is more than this share of their mean distance from the nearest.
FAR = 0.75

_log = logging.getLogger(__name__)
_told: set[Path] = set()


@cache
def calibrated_lambdas(folder: Path) -> tuple[float, ...]:
    """Lambdas of the schedule that a network on disk was calibrated on; none where its activations have no grids."""
    files = find_quantized(folder)
    config = files.config
    if config.activation_bits == FULL_PRECISION or config.granularity == "token" or "schedule" not in files.description:
        return ()
    schedule = SolverSchedule.from_json(json.dumps(files.description["schedule"]))
    return called_lambdas(schedule)


def called_lambdas(schedule: SolverSchedule) -> tuple[float, ...]:
    """Lambdas that the network is called at: the last node only where its step is corrected."""
    first = int(schedule.first_call != "model")
    last = len(schedule.lambdas) - int(schedule.steps[-1].corrector is None)
    return tuple(schedule.lambdas[first:last])


def far_from(known: Sequence[float], asked: Sequence[float], noise: NoiseSchedule) -> list[float]:
    """Those of `asked` lambdas that are far from the `known` ones; both are cut to the model's own range."""

    def inside(values: Sequence[float]) -> list[float]:
        return sorted({min(max(value, noise.lambda_start), noise.lambda_end) for value in values})

    lambdas = inside(known)
    if len(lambdas) < 2:
        return []
    apart = (lambdas[-1] - lambdas[0]) / (len(lambdas) - 1)
    return [a for a in inside(asked) if min(abs(a - k) for k in lambdas) > FAR * apart]


def tell_if_far(folder: Path, schedule: SolverSchedule, noise: NoiseSchedule) -> bool:
    """Warn, once for each network, of a schedule with times far from the calibration's; whether it has any."""
    known = calibrated_lambdas(folder)
    asked = called_lambdas(schedule)
    found = far_from(known, asked, noise) if known else []
    if found and folder not in _told:
        _told.add(folder)
        _log.warning(
            "%s was calibrated on other times than schedule %s asks for (%d of %d are far, as lambda %.2f): its "
            "images may be off; quantise again for this schedule",
            *(folder, schedule.name or schedule.hash, len(found), len(set(asked)), found[0]),
        )
    return bool(found)
