"""A portfolio out of what studies found: their best proposals, and schedules in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fewstep.errors import ConfigurationError, FewstepError
from fewstep.pipeline.problems.schedules import ScheduleProblem
from fewstep.pipeline.proposers.base import is_known, is_refined
from fewstep.pipeline.study import Study
from fewstep.search_spaces.point import schedule_of
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.genome import Genome, to_genome
from fewstep.search_spaces.schedule.portfolio import Entry, Portfolio
from fewstep.tasks.models.files import ModelFiles, find_model

# How many schedules a study gives at each number of calls, unless it is said.
EACH = 2


def collected(sources: Sequence[Path], each: int = EACH) -> Portfolio:
    """The best proposals of the studies among `sources`, `each` at every number of calls, and the schedules in files.

    Those of a study differ in more than their times and coefficients. What was tuned is left out: its corrections are a
    model's own, and its start is among the proposals. A file's schedule says itself which model it was found on.
    ConfigurationError where a source has nothing to give.
    """
    found: dict[str, Entry] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for source in sources:
        files, schedules = _of_study(source, each) if source.is_dir() else _of_file(source)
        noise, label = files.noise, Path(files.name).name
        for schedule in schedules:
            nfe = schedule.nfe
            plain = schedule.model_copy(update={"corrections": None, "name": "", "provenance": {}})
            entry = Entry(
                name=f"{label}-{nfe}-{counts[label, nfe] + 1}",
                model=label,
                model_hash=files.hash,
                noise_range=(noise.lambda_start, noise.lambda_end),
                schedule=plain,
            )
            if entry.is_portable and plain.hash not in found:
                counts[label, nfe] += 1
                found[plain.hash] = entry
    if not found:
        raise ConfigurationError(
            f"{', '.join(map(str, sources))}: no proposal of a search's own among them, and nothing else that another "
            "model can begin with"
        )
    return Portfolio(entries=tuple(sorted(found.values(), key=lambda e: (e.schedule.nfe, e.name))))


def _of_file(path: Path) -> tuple[ModelFiles, list[SolverSchedule]]:
    schedule = load_schedule(path)
    model = schedule.provenance.get("model")
    if not isinstance(model, str):
        raise ConfigurationError(f"{path} does not say which model it was found on: give its study's folder instead")
    try:
        return find_model(model), [schedule]
    except FewstepError as error:
        raise ConfigurationError(
            f"{path} was found on {model!r}, whose noise is needed: {error}; or give its study's folder instead"
        ) from None


def _of_study(root: Path, each: int) -> tuple[ModelFiles, list[SolverSchedule]]:
    study = Study.load(root)
    if not isinstance(study.problem, ScheduleProblem):
        raise ConfigurationError(f"{root} is no search of schedules alone: a portfolio takes nothing else")
    return study.files, list(_proposals(study, study.problem, each))


def _proposals(study: Study, problem: ScheduleProblem, each: int) -> Iterator[SolverSchedule]:
    search = study.state()
    for nfe in problem.settings.nfes:
        chosen: list[Genome] = []
        for trial in search.best(nfe, search.ladder.main):
            origin, schedule = trial.candidate.origin, schedule_of(trial.candidate.point)
            if is_known(origin) or is_refined(origin) or schedule is None or schedule.corrections is not None:
                continue
            genome = to_genome(schedule)
            if len(chosen) < each and not any(problem.schedules.alike(genome, other) for other in chosen):
                chosen.append(genome)
                yield schedule
