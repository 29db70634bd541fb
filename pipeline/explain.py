"""Which decision bought what: a schedule with one decision at a time put back to the nearest stock schedule.

Each variant is compared with the whole schedule on the same noise, so the difference is paired: positive where the
decision had made images better. A refinement's corrections are one decision more, put back to none; they stay in
every other variant, as the rest of the schedule does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.errors import ConfigurationError, EvaluationError, ScheduleError
from fewstep.pipeline.campaign import Campaign, check_groups, evaluate_missing
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.reports.rows import metric_name
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.genome import Genes, Genome, to_genome, to_schedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.sampling.grids import all_presets
from fewstep.tasks.work import Subject

# What one differing decision of a step weighs against a mean move of the times by 1 in lambda.
DECISION = 1.0
# Genes that are one decision: an order without its points, or a relaxation without its coefficient, means nothing.
GENES: dict[str, tuple[str, ...]] = {
    "prediction": ("prediction",),
    "order": ("order", "estimate", "start"),
    "relaxation": ("relaxation", "coefficient"),
    "corrector": ("corrector",),
}


@dataclass(frozen=True)
class Variant:
    """The schedule with one decision put back, `step` counting from 1 or None for all at once; what it was, and is."""

    decision: str
    step: int | None
    was: str
    now: str
    schedule: SolverSchedule


@dataclass(frozen=True)
class ExplainRow:
    """A line of the table: what putting a decision back does to the Frechet distance, with its paired 95% interval."""

    model: str
    decision: str
    step: str
    was: str
    now: str
    metric: str
    value: float
    difference: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Explanation:
    """The table, its first line the whole schedule, the stock schedule that decisions were put back to, the records."""

    rows: list[ExplainRow]
    nearest: SolverSchedule
    records: list[EvaluationRecord]


def nearest_preset(genome: Genome, noise: NoiseSchedule) -> tuple[SolverSchedule, Genome]:
    """The stock schedule with as many steps that differs least, its first call taken over from the genome."""
    best: tuple[float, SolverSchedule, Genome] | None = None
    for schedule in all_presets(noise, len(genome.genes)).values():
        try:
            other = replace(to_genome(schedule), first_call=genome.first_call)
        except ScheduleError:
            # Of a scheduler that takes pure noise for a later point, which no genome says.
            continue
        distance = _distance(genome, other)
        if best is None or distance < best[0]:
            best = distance, schedule, other
    assert best is not None
    return best[1], best[2]


def _distance(one: Genome, other: Genome) -> float:
    if one.end != other.end:
        return math.inf
    times = [abs(a - b) for a, b in zip(one.lambdas, other.lambdas, strict=True)]
    differing: int = sum(
        getattr(a, name) != getattr(b, name)
        for a, b in zip(one.genes, other.genes, strict=True)
        for name in ("prediction", "order", "relaxation", "corrector")
    )
    return sum(times) / len(times) + DECISION * differing / len(one.genes)


def variants(
    schedule: SolverSchedule, noise: NoiseSchedule, each_step: bool = True
) -> tuple[SolverSchedule, list[Variant]]:
    """The nearest stock schedule, and the schedules with one decision put back to it, those that differ.

    Raises ConfigurationError for a schedule that is no member of the search space, corrections apart.
    """
    try:
        genome = to_genome(schedule.model_copy(update={"corrections": None}))
    except ScheduleError as error:
        raise ConfigurationError(f"cannot explain it: {error}") from None
    nearest, stock = nearest_preset(genome, noise)
    found: list[Variant] = []

    def add(decision: str, step: int | None, was: object, now: object, changed: Genome) -> None:
        made = to_schedule(changed)
        if schedule.corrections is not None and made.nodes == schedule.nodes:
            made = made.model_copy(update={"corrections": schedule.corrections})
        if made.hash not in {schedule.hash, *(v.schedule.hash for v in found)}:
            found.append(Variant(decision, step, str(was), str(now), made))

    if schedule.corrections is not None and not schedule.corrections.are_zero:
        size = f"up to {schedule.corrections.largest:.3g}, times by up to {schedule.corrections.largest_shift:.3g}"
        plain = schedule.model_copy(update={"corrections": None})
        found.append(Variant("refinement", None, size, "none", plain))
    add("times", None, _times(genome.lambdas), _times(stock.lambdas), replace(genome, lambdas=stock.lambdas))
    if genome.first_call != "model" and len(genome.genes) > 1:
        add("first call", None, genome.first_call, "model", _with_a_call(genome))
    for decision, names in GENES.items():
        _put_back(genome, stock, decision, names, None, add)
    add("threshold", None, genome.threshold, "none", replace(genome, threshold="none"))
    add("guidance", None, genome.guidance, "the model's own", replace(genome, guidance=None))
    add("skips", None, genome.skips, "none", replace(genome, skips=()))
    if each_step:
        for i in range(len(genome.genes)):
            if 0 < i < len(genome.lambdas):
                _put_time_back(genome, stock, i, add)
            for decision, names in GENES.items():
                _put_back(genome, stock, decision, names, i, add)
    return nearest, found


Add = Callable[[str, int | None, object, object, Genome], None]


def _put_back(genome: Genome, stock: Genome, decision: str, names: tuple[str, ...], i: int | None, add: Add) -> None:
    """One decision of one step, or of all."""
    genes = list(genome.genes)
    which = range(len(genes)) if i is None else [i]
    for k in which:
        genes[k] = replace(genes[k], **{name: getattr(stock.genes[k], name) for name in names})
    was, now = (" ".join(_word(decision, g[k]) for k in which) for g in (genome.genes, tuple(genes)))
    add(decision, None if i is None else i + 1, was, now, replace(genome, genes=tuple(genes)))


def _put_time_back(genome: Genome, stock: Genome, i: int, add: Add) -> None:
    """The time that step i starts at, where that keeps the times in order."""
    lambdas = list(genome.lambdas)
    lambdas[i] = stock.lambdas[i]
    ordered = lambdas[i - 1] + 0.02 <= lambdas[i] and (i + 1 == len(lambdas) or lambdas[i] + 0.02 <= lambdas[i + 1])
    if ordered:
        add(
            "time",
            i + 1,
            _times(genome.lambdas[i : i + 1]),
            _times(lambdas[i : i + 1]),
            replace(genome, lambdas=tuple(lambdas)),
        )


def _with_a_call(genome: Genome) -> Genome:
    """As many calls, the first of them at the start: the step that the noise itself paid for goes."""
    lambdas = (genome.lambdas[0], *genome.lambdas[2:])
    return replace(genome, first_call="model", lambdas=lambdas, genes=(genome.genes[0], *genome.genes[2:]))


def _word(decision: str, genes: Genes) -> str:
    if decision == "corrector":
        return "yes" if genes.corrector else "no"
    if decision == "relaxation":
        return f"{genes.coefficient:+.3g}h" if genes.relaxation == "linear" else genes.relaxation
    return str(getattr(genes, decision))


def _times(lambdas: tuple[float, ...] | list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in lambdas)


def explain(
    schedule: SolverSchedule,
    subject: Subject,
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
    each_step: bool = True,
    on_record: OnRecord | None = None,
    metric: str = "frechet",
) -> Explanation:
    """The ablation table of a schedule. Everything is kept under `root`: the same call goes on where it was killed.

    ConfigurationError unless the images fill at least three groups of GROUP, which the intervals need.
    """
    check_groups(images)
    files, rung = subject.files, Rung("report", metric, images, seed)
    nearest, changed = variants(schedule, files.noise, each_step)
    whole = Variant("whole schedule", None, "", "", schedule)
    stock = Variant(f"nearest preset, {nearest.nfe} calls", None, "", nearest.name, nearest)
    entries = [whole, stock, *changed]
    work = [(entry.schedule, "explain") for entry in entries]
    records = evaluate_missing(subject, work, rung, root, execution, on_record=on_record, parts=True)
    evaluator = Campaign(subject, root, execution).evaluator()
    measured = evaluator.metric(rung.metric)
    if records[0].value is None:
        raise EvaluationError(f"the schedule itself cannot be evaluated: {records[0].error}")
    base = evaluator.parts(as_point(schedule), rung)
    rows = []
    for entry, record in zip(entries, records, strict=True):
        # Without that decision the schedule may explode: then that is what it bought.
        value, ends = math.inf, (math.inf, math.inf, math.inf)
        if record.value is not None:
            found = measured.paired(evaluator.parts(as_point(entry.schedule), rung), base)
            assert found is not None
            value, ends = record.value, (found.value, found.low, found.high)
        rows.append(_row(entry, files.name, metric_name(record), value, ends, images))
    return Explanation(rows, nearest, records)


def _row(entry: Variant, model: str, metric: str, value: float, ends: tuple[float, ...], images: int) -> ExplainRow:
    step = "all" if entry.step is None else str(entry.step)
    difference, low, high = ends
    return ExplainRow(model, entry.decision, step, entry.was, entry.now, metric, value, difference, low, high, images)
