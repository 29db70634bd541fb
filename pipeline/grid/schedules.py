"""The values of a grid's schedule axis: presets, which take the grid's calls, and what has calls of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.baseline_settings import known_names
from fewstep.pipeline.study_file import warm_starts
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import ALIASES, PRESETS
from fewstep.storage.origins import PRESET
from fewstep.tasks.models.files import ModelFiles
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling import grids
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import GRIDS, preset_on_grid

MOST_CALLS = 200
NAMES = f"presets are {', '.join([*PRESETS, *ALIASES])}; grids are {', '.join([*GRIDS, *grids.ALIASES])}"


@dataclass(frozen=True)
class Entry:
    """One value: a preset on a grid, at `calls` or at the grid's (0), or schedules that are `given`."""

    name: str
    calls: int = 0
    given: tuple[SolverSchedule, ...] = ()

    @property
    def takes_calls(self) -> bool:
        """Whether it is made at the grid's numbers of calls."""
        return not self.given and not self.calls


@dataclass(frozen=True)
class Timed:
    """A value at one number of calls on a model; `reason` says why that cannot be."""

    name: str
    nfe: int
    schedule: SolverSchedule | None
    origin: str = ""
    reason: str = ""


def entries(text: str) -> list[Entry]:
    """What a text of the axis names, a pattern's presets each; ConfigurationError where that is nothing."""
    if Path(text).is_dir():
        return _of_study(text)
    if text.endswith(".json"):
        return [Entry(text, given=(load_schedule(text),))]
    name, at, calls = text.partition("@")
    if any(sign in name for sign in "*?["):
        return _matching(text)
    solver, slash, where = name.partition("/")
    try:
        known_names((solver,), "preset", [*PRESETS, *ALIASES])
        known_names((where,) if slash else ("uniform-t-zero",), "grid", [*GRIDS, *grids.ALIASES])
    except ValueError:
        raise ConfigurationError(f"schedule {text!r} is no file, no folder and no PRESET/GRID: {NAMES}") from None
    if at and not (calls.isdecimal() and 1 <= int(calls) <= MOST_CALLS):
        raise ConfigurationError(f"schedule {text!r}: write PRESET/GRID@CALLS with 1 to {MOST_CALLS} calls")
    return [Entry(name, int(calls) if at else 0)]


def _of_study(folder: str) -> list[Entry]:
    """What a study found; where it found several at one number of calls, each under its file's name."""
    found = [SolverSchedule.from_json(text) for text in warm_starts(Path(folder), "schedule") or ()]
    if len({schedule.nfe for schedule in found}) == len(found):
        return [Entry(folder, given=tuple(found))]
    files = sorted((Path(folder) / "schedules").glob("*.json"))
    return [Entry(f"{folder}/{file.stem}", given=(s,)) for file, s in zip(files, found, strict=True)]


def _matching(text: str) -> list[Entry]:
    if "@" in text:
        raise ConfigurationError(f"schedule {text!r}: a pattern takes its calls from nfes, leave @ away")
    names = (f"{preset}/{where}" for preset in PRESETS for where in GRIDS)
    if found := [Entry(name) for name in names if fnmatchcase(name, text)]:
        return found
    raise ConfigurationError(f"schedule {text!r} matches nothing: {NAMES}")


def all_entries(texts: Sequence[str], nfes: Sequence[int]) -> list[Entry]:
    """Those of all texts, each once; ConfigurationError where calls are missing, or are for none of them."""
    found = list({(one.name, one.calls): one for text in texts for one in entries(text)}.values())
    taking = [one for one in found if one.takes_calls]
    if taking and not nfes:
        raise ConfigurationError(
            f"schedule {taking[0].name} needs nfes: say at how many calls, as 3-6, or write {taking[0].name}@4"
        )
    if nfes and not taking:
        raise ConfigurationError(f"nfes {list(nfes)}: every schedule has calls of its own, leave nfes out")
    return found


def timed(
    asked: Sequence[Entry], nfes: Sequence[int], files: ModelFiles, statistics: ModelStatistics | None
) -> list[Timed]:
    """Every value at each of its numbers of calls, on a model."""
    found: dict[tuple[str, int], Timed] = {}
    for entry in asked:
        for schedule in entry.given:
            one = Timed(entry.name, schedule.nfe, schedule, f"given:{schedule.name or schedule.hash}")
            found[one.name, one.nfe] = _fitted(one, files, statistics)
        for nfe in () if entry.given else (entry.calls,) if entry.calls else nfes:
            try:
                one = Timed(entry.name, nfe, preset_on_grid(entry.name, files.noise, nfe), PRESET + entry.name)
                found[one.name, nfe] = _fitted(one, files, statistics)
            except FewstepError as error:
                found[entry.name, nfe] = Timed(entry.name, nfe, None, reason=str(error))
    return list(found.values())


def _fitted(one: Timed, files: ModelFiles, statistics: ModelStatistics | None) -> Timed:
    assert one.schedule is not None
    try:
        compile_schedule(one.schedule, files.noise, files.prediction_type, statistics)
    except FewstepError as error:
        return Timed(one.name, one.nfe, None, reason=str(error))
    return one
