"""Refine one schedule and select what came of it on noise that tuned nothing: the start stays unless it is beaten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.pipeline.campaign import STUDY, Campaign, evaluate_missing
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.trial import Rung
from fewstep.search_spaces.point import content_key
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.load import load_denoiser
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.refinement.descend import descend
from fewstep.tasks.refinement.features import Judge, check_tunable
from fewstep.tasks.refinement.moment_plan import MomentPlan
from fewstep.tasks.refinement.plan import RefinePlan
from fewstep.tasks.refinement.tune import Check, OnCheck, Refined, Refinement
from fewstep.tasks.work import Subject

KINDS = ("start", "best", "averaged")
# Distances in the subject's features, and those that need no teacher.
JUDGED = ("reference", "features", "moments")
UNTAUGHT = ("reference", "moments")
FOLDER = "refinements"


@dataclass(frozen=True)
class Selected:
    """A refinement and the Frechet distances (search seeds) of start, best and averaged iterate, in this order."""

    refined: Refined
    records: tuple[EvaluationRecord, ...]
    chosen: SolverSchedule
    kind: str

    @property
    def selection_calls(self) -> int:
        """Denoiser calls of the judgement from nothing; what coincides is judged once."""
        return sum({r.candidate: r.nfe * r.images for r in self.records}.values())


def refine(
    subject: Subject,
    schedule: SolverSchedule,
    teacher: SolverSchedule,
    plan: RefinePlan | MomentPlan,
    root: Path,
    device: str = "cpu",
    on_check: OnCheck | None = None,
) -> Refined:
    """Tune a schedule; progress lies under `root`, and the same call goes on from there.

    A descent on moments has one result, which is the averaged iterate too; its checks count denoiser calls.
    ConfigurationError where the teacher makes no more calls than the schedule, or the features or a quantised network
    have no gradient for the distance.
    """
    if subject.quantized and not isinstance(plan, MomentPlan):
        raise ConfigurationError(
            f"a distance to {plan.distance} needs the gradient of the network, and a quantised one has none: "
            "give --distance moments"
        )
    taught = plan.distance not in UNTAUGHT
    if taught and teacher.nfe <= schedule.nfe:
        raise ConfigurationError(
            f"the teacher makes {teacher.nfe} calls, the schedule {schedule.nfe}: give a teacher that makes more"
        )
    files = subject.files
    setting = Setting(subject, files, device)
    check_tunable(setting, plan.distance)
    campaign = Campaign(subject, root, ExecutionSettings())
    campaign.check(campaign.evaluator(), ["frechet"])
    statistics = ModelStatistics.load_for(Path(subject.statistics), files) if subject.statistics else None
    key = content_key(
        model=files.hash,
        conditions=subject.conditions.hash,
        statistics=statistics.hash if statistics else "",
        schedule=schedule.hash,
        teacher=teacher.hash if taught else "",
        plan=plan.model_dump_json(),
        **_judged_by(setting, plan.distance),
    )
    folder, denoiser = root / FOLDER / key, load_denoiser(files, device, subject.conditions)
    judge = Judge(setting, denoiser)
    if isinstance(plan, MomentPlan):
        return _descended(schedule, denoiser, plan, judge, statistics, folder, on_check)
    return Refinement(schedule, teacher, denoiser, plan, statistics, folder, judge).run(on_check)


def _judged_by(setting: Setting, distance: str) -> dict[str, str]:
    """Content of the features and the reference that a distance is one in, unless they are the model's own."""
    given = (setting.subject.features, setting.subject.reference) != ("auto", "auto")
    found = {"features": setting.extractor.hash} if given and distance in JUDGED else {}
    return found | ({"reference": setting.reference[1]} if given and distance in UNTAUGHT else {})


def _descended(
    schedule: SolverSchedule,
    denoiser: Denoiser,
    plan: MomentPlan,
    judge: Judge,
    statistics: ModelStatistics | None,
    folder: Path,
    on_check: OnCheck | None,
) -> Refined:
    last = 0

    def heard(calls: int, value: float) -> None:
        nonlocal last
        last = calls
        if on_check:
            on_check(Check(calls, value, value))

    found = descend(schedule, denoiser, plan, judge, statistics, folder / "progress.safetensors", heard)
    checks = Check(0, found.before, found.before), Check(last, found.after, found.after)
    return Refined(schedule, found.schedule, found.schedule, checks, found.cost)


def select(
    subject: Subject,
    refined: Refined,
    images: int,
    seed: int,
    root: Path,
    execution: ExecutionSettings,
    study: str = STUDY,
    on_record: OnRecord | None = None,
) -> Selected:
    """Start, best and averaged iterate on the same `images` of `seed`; the start is kept where nothing beats it."""
    schedules = (refined.start, refined.best, refined.averaged)
    work = [(s, f"refinement:{kind}") for s, kind in zip(schedules, KINDS, strict=True)]
    records = evaluate_missing(
        subject, work, Rung("search", "frechet", images, seed), root, execution, study, on_record
    )
    values = [(r.value, i) for i, r in enumerate(records) if r.status == "complete" and r.value is not None]
    best = min(values)[1] if values else 0
    return Selected(refined, tuple(records), schedules[best], KINDS[best])


def published(judged: Selected, name: str) -> SolverSchedule:
    """The chosen schedule under a name, with what was done and what it reached in its provenance."""
    refined, record = judged.refined, judged.records[KINDS.index(judged.kind)]
    figures = {
        "metric": record.features,
        "value": record.value,
        "images": record.images,
        "search_seed": record.seed,
        "model": record.model,
        "model_hash": record.model_hash,
        "refinement_calls": refined.cost.calls,
    }
    note = judged.chosen.provenance.get("refinement", {"refined_from": refined.start.hash, "iterate": "start"})
    return judged.chosen.model_copy(update={"name": name, "provenance": {"refinement": note, **figures}})
