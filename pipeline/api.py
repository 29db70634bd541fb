"""fewstep from Python: `search`, `load_study`, `evaluate`. The command line calls the same functions.

study = fewstep.search("digits-ddpm", nfe=range(3, 6), budget=200_000, out="runs/digits")
study.front()                               # a DataFrame, one row a number of denoiser calls
pipe.scheduler = study.best(nfe=4).scheduler(pipe.scheduler)
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fewstep.errors import ConfigurationError, StorageError, TrackingError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study_file import NESTED, read_study_file, resolved, search_settings
from fewstep.pipeline.subjects import subject_of, teacher_of
from fewstep.pipeline.values import built, find_field
from fewstep.pipeline.view import Evaluation, StudyView
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.measured_settings import MeasuredSettings, SubjectSettings
from fewstep.tasks.models.conditions import join_prompts, read_prompts

if TYPE_CHECKING:
    from fewstep.pipeline.study import Outcome, Study
    from fewstep.search_spaces.ode import Sampler
    from fewstep.storage.records import EvaluationRecord

MODEL_FOLDER = "model"
ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")


def search(
    model: Any = None,
    nfe: str | int | Iterable[int] | None = None,
    budget: int | None = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    executor: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    timeout: float | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    known: Sequence[str | Path] = (),
    tracking_uri: str | None = None,
    optuna_storage: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> StudyView:
    """Search few-step samplers for a model, judge what is found on fresh noise, and give the study.

    `model` is a bundled model's name, a diffusers directory, or a diffusers pipeline, which is saved to `out`/model
    with save_pretrained. `nfe` holds the numbers of denoiser calls, `budget` the calls to spend. `out` is the study's
    folder [default: runs/NAME]: a study in it with equal settings is gone on with, or, where it is finished, read.
    `recipe` is a recipe's name or a TOML study file; arguments go before what it says. `settings` are the other
    fields of SearchSettings; those of the conditions (labels, guidance, prompts...) can be given as they are.
    `executor`, `workers`, `address` and `device` say where it runs, `timeout` after how many seconds a task hangs,
    `cpus` and `gpus` what a worker on Ray takes, `known` which folders' evaluations are taken; `tracking_uri` logs to
    that MLflow server, and Optuna's study is kept in `optuna_storage`, by default in the folder.

    Raises ConfigurationError for settings that cannot be, or where `out` holds a study with others.
    """
    layers = [] if recipe is None else [_recipe(recipe)]
    given = {"nfe": nfe, "nfes": settings.pop("nfes", None)}
    calls = next((value for value in given.values() if value is not None), None)
    if calls is not None:
        settings["nfes"] = calls if isinstance(calls, str) else (calls,) if isinstance(calls, int) else tuple(calls)
    if budget is not None:
        settings["budget"] = budget
    piped = model is not None and not isinstance(model, str | Path)
    if piped:
        if out is None:
            raise ConfigurationError("a pipeline is saved beside its study: say where, as out='runs/mine'")
        settings["model"] = _saved(model, Path(out) / MODEL_FOLDER)
    elif model is not None:
        settings["model"] = str(model)
    chosen = search_settings(*layers, resolved(nested(SearchSettings, settings)))
    execution = execution_of(
        executor=executor,
        workers=workers,
        address=address,
        device=device,
        timeout=timeout,
        cpus=cpus,
        gpus=gpus,
        known=known,
    )

    from fewstep.pipeline.display import SearchDisplay

    study = open_study(Path(out) if out is not None else Path("runs") / chosen.study, chosen)
    with SearchDisplay(chosen, not progress, study.records()) as display:
        run_study(
            study,
            execution,
            _called(chosen, study.root),
            tracking_uri,
            display.on_record,
            tracking_uri is not None,
            optuna_storage,
        )
    return StudyView(study)


def load_study(path: str | Path) -> StudyView:
    """The study in a folder, to read; StorageError where it holds none."""
    from fewstep.pipeline.study import Study

    return StudyView(Study.load(Path(path)))


def evaluate(
    model: str | Path,
    schedule: SolverSchedule | str | Path | None = None,
    *,
    ode: str | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    images: int = 5000,
    seed: int = 1_000_003,
    out: str | Path = "runs/evaluations",
    executor: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    timeout: float | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    known: Sequence[str | Path] = (),
    **settings: Any,
) -> Evaluation:
    """The Frechet distance of a schedule (or its file, or PRESET/GRID@CALLS), or of an ODE solver, with its interval.

    `ode` is dopri5, with its tolerances, or euler, midpoint or heun, as heun@6. `settings` are the other fields of
    MeasuredSettings: metric (one, or several, whose further ones are `others` of what is given back), features,
    reference, teacher, statistics, quantized, judge, and the conditions' labels, guidance, prompts...
    Tables in `out` keep the result: nothing is computed twice, more images cost only the new ones.

    Raises ConfigurationError for a choice that cannot be, EvaluationError where the images have no distance.
    """
    asked = built(MeasuredSettings, {**nested(MeasuredSettings, settings), "model": str(model)})
    execution = execution_of(
        executor=executor,
        workers=workers,
        address=address,
        device=device,
        timeout=timeout,
        cpus=cpus,
        gpus=gpus,
        known=known,
    )
    return evaluate_subject(asked, chosen_sampler(asked, schedule, ode, rtol, atol), images, seed, Path(out), execution)


# -- what the command line shares -----------------------------------------------------------------------


def open_study(root: Path, settings: SearchSettings) -> Study:
    """The study in a folder, new or with equal settings; ConfigurationError names the first that differs.

    A setting that is younger than the study, and that nobody named, stays what it is for such studies.
    """
    from fewstep.pipeline.study import Study, read_settings

    study = Study(root, settings)
    if not study.exists:
        return study
    stored = study.store.studies.records()[-1].settings_json
    past = read_settings(stored)
    younger = set(type(settings).model_fields) - set(json.loads(stored)) - settings.model_fields_set
    now = settings.model_copy(update={name: getattr(past, name, None) for name in younger})
    if past != now:
        then, given = past.model_dump(), now.model_dump()
        name = next(name for name in given if then.get(name) != given[name])
        raise ConfigurationError(
            f"{root} holds a study with {name} = {then.get(name)!r}, not {given[name]!r}: choose another folder (out), "
            "or the same settings to go on with it"
        )
    return Study(root, now)


def run_study(
    study: Study,
    execution: ExecutionSettings,
    command: str,
    tracking_uri: str | None = None,
    on_record: Callable[[EvaluationRecord], None] | None = None,
    log: bool = True,
    optuna_storage: str | None = None,
) -> tuple[Outcome, str]:
    """Search, report, draw and (`log`) track; the outcome with every file, and the tracking URI.

    Optuna's study is kept in any case, see `sync_optuna`. A server or database that refuses is a warning on stderr,
    since everything is on disk.
    """
    from fewstep.pipeline import publishing
    from fewstep.pipeline.optuna_study import sync_optuna
    from fewstep.storage.masking import masked_argument
    from fewstep.storage.tracking import default_tracking_uri

    outcome = study.run(execution, command, on_record)
    uri = tracking_uri or default_tracking_uri(study.root)
    try:
        if log:
            publishing.log(study, uri, optuna_storage)
        else:
            sync_optuna(study, optuna_storage)
        return replace(outcome, files=outcome.files | publishing.draw(study)), uri
    except (TrackingError, StorageError) as error:
        hint = f"run `fewstep report --out {study.root} --sync --tracking-uri {masked_argument(uri)}` later"
        if optuna_storage:
            hint += f" (with --optuna {masked_argument(optuna_storage)})"
        print(f"warning: {' '.join(str(error).split())}; nothing is lost: {hint}", file=sys.stderr)
    return outcome, uri


def evaluate_subject(
    settings: MeasuredSettings, sampler: Sampler, images: int, seed: int, out: Path, execution: ExecutionSettings
) -> Evaluation:
    """Evaluate one sampler by every metric, or read what is known of it."""
    from fewstep.pipeline import campaign

    subject, teacher = subject_of(settings), teacher_of(settings)
    records = campaign.evaluate_by(subject, [sampler], images, seed, out, execution, settings.metric, teacher=teacher)
    found = [_evaluation(record) for record in records]
    return replace(found[0], others=tuple(found[1:]))


def _evaluation(r: EvaluationRecord) -> Evaluation:
    from fewstep.pipeline.reports.rows import metric_name

    assert r.value is not None
    judged: dict[str, Any] = {name: r.metrics[name] for name in ACCURACY if name in r.metrics}
    nfe = r.metrics.get("nfe", r.nfe)
    told = {n: v for n, v in r.metrics.items() if n not in ("nfe", *ACCURACY)} if r.metric != "frechet" else {}
    ends = r.low, r.high
    return Evaluation(
        r.model,
        r.candidate,
        nfe,
        metric_name(r),
        r.value,
        *ends,
        r.images,
        r.seed,
        r.denoiser_calls,
        **judged,
        figures=told,
    )


def chosen_sampler(
    settings: SubjectSettings,
    schedule: SolverSchedule | str | Path | None,
    ode: str | None,
    rtol: float,
    atol: float,
) -> Sampler:
    """What is evaluated: a schedule or an ODE solver, exactly one of them."""
    from fewstep.search_spaces.ode import parse_ode
    from fewstep.tasks.sampling.grids import parse_schedule

    if (schedule is None) == (ode is None):
        raise ConfigurationError("say what to evaluate: --schedule FILE or PRESET/GRID@CALLS, or --ode SOLVER")
    if settings.integer and ode == "dopri5":
        raise ConfigurationError("integers run at one time a batch, dopri5 at one an image: leave --integer out")
    if ode is not None:
        return parse_ode(ode, atol, rtol)
    if isinstance(schedule, SolverSchedule):
        return schedule
    return parse_schedule(str(schedule), settings.files.noise)


# -- arguments ------------------------------------------------------------------------------------------


def nested(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the settings nest them: `labels` goes into `conditions`. ConfigurationError for an unknown name."""
    found: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name in NESTED:
            values = value.model_dump() if isinstance(value, BaseModel) else dict(value)
            nested.setdefault(name, {}).update(values)
            continue
        table, _, inner = find_field(settings, name)[0].rpartition(".")
        if table and isinstance(value, Path):
            value = read_prompts(value) if inner == "prompts" else str(value)
        (nested.setdefault(table, {}) if table else found)[inner] = str(value) if isinstance(value, Path) else value
    conditions = nested.get("conditions", {})
    prompts = conditions.get("prompts")
    if isinstance(prompts, list | tuple):
        conditions["prompts"] = join_prompts(prompts)
    return found | nested


def _recipe(recipe: str | Path) -> dict[str, Any]:
    from fewstep.pipeline.recipes import recipe_fields

    path = Path(recipe)
    return read_study_file(path) if path.suffix == ".toml" else recipe_fields(str(recipe))


def execution_of(**given: Any) -> ExecutionSettings:
    """The settings of the arguments that are given; `known` may be paths, or one."""
    known = given.get("known") or ()
    given["known"] = (str(known),) if isinstance(known, str | Path) else tuple(map(str, known))
    return built(ExecutionSettings, {name: value for name, value in given.items() if value is not None})


def _called(s: SearchSettings, root: Path) -> str:
    """What made a study's results, as their header names it."""
    return f"fewstep.search(model={s.model!r}, nfe={list(s.nfes)}, budget={s.budget}, out={str(root)!r})"


def _saved(pipeline: Any, folder: Path) -> str:
    """Save a diffusers pipeline once, and refuse another one in its place."""
    from fewstep.tasks.models.files import find_model

    if not hasattr(pipeline, "save_pretrained"):
        raise ConfigurationError(
            f"model is a {type(pipeline).__name__}: give a bundled model's name, a diffusers directory or a pipeline"
        )
    folder = folder.resolve()
    aside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        pipeline.save_pretrained(str(aside))
    except OSError as error:
        raise StorageError(f"cannot save the pipeline to {aside}: {error}") from None
    if not folder.exists():
        aside.rename(folder)
        return str(folder)
    same = find_model(str(aside)).hash == find_model(str(folder)).hash
    shutil.rmtree(aside)
    if not same:
        raise ConfigurationError(f"{folder} holds another pipeline: choose another folder (out) for this one")
    return str(folder)
