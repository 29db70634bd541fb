"""`fewstep edit`: fit boundaries of an attribute, apply them, and search for the edit that works best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.pipeline.commands.fields import DEVICE, EXECUTION, Fields, options
from fewstep.pipeline.commands.options import AsJson, Device, Tracking, folder, into, print_json, resumed, typed
from fewstep.pipeline.editing.settings import STRIP, EditSettings, study_name
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.settings import POPULATIONS
from fewstep.pipeline.values import built
from fewstep.search_spaces.edit import EditConfig
from fewstep.tasks.editing.subject import TRAIN, EditSubject

NAME = "edit"
# How a search inverts the examples that boundaries are fitted to: in few calls, since it fits many.
SEARCH_FIT_WAY = "dpm-solver-2m/uniform-t@10"
STEPS = 12

app = typer.Typer(
    name=NAME,
    help="Edit images without training: cross an attribute's boundary once, at one step.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JUDGING = {
    "features": "of identity and the Frechet distance: auto, inception, or another feature space",
    "judge": "what judges success: a name, a folder of a classifier or CLIP model, a file, MODULE:CALLABLE, or train",
    "judge_positive": "labels of the judge (or texts, for CLIP) that mean the attribute, with | between",
    "judge_negative": "those that mean it is not there",
    "judge_steps": "of --judge train: training steps",
    "identity": "what identity is measured by: perceptual[:FEATURES], features, distance:MODULE:CALLABLE",
}
SUBJECT = Fields(
    EditSubject,
    texts={
        "model": "a bundled model's name, a diffusers directory or a name on the hub",
        "source": "images (inverted), samples, or text (by two prompts)",
        "data": "data set name, a folder with a folder of images for each class, or another labelled source",
        "attribute": "a known attribute, or POSITIVE/NEGATIVE classes, as Boot/Sneaker",
        "prompt": "of a model that takes prompts: what is edited, or what images are inverted under",
        "positive_prompt": "the prompt of a boundary that has the attribute",
        "negative_prompt": "the prompt that does not",
        "text_model": "a text-to-image model whose images of the two prompts a boundary is fitted to",
        "text_way": "how it samples: PRESET/GRID@CALLS or a schedule's file",
        "text_call": "more arguments of its pipeline's call, as height=512,num_frames=1",
        "guidance": "scale of classifier-free guidance of what takes prompts; 1: none",
        "fit_way": "how examples are inverted: PRESET/GRID@CALLS or a schedule's file",
        "examples": "images of each side that boundaries are fitted to",
        **JUDGING,
        "seed": "seed of the starting noise",
    },
    partial=True,
)
EDIT = Fields(
    EditConfig,
    only=(
        "latent",
        "inversion",
        "generation",
        "eta",
        "eta_window",
        "rescale",
        "boundary.C",
        "boundary.standardise",
    ),
    flags={"boundary.C": "--svm-c"},
    texts={
        "latent": "z (the noisy image), h (the bottleneck) or both",
        "inversion": "way to the step: PRESET/GRID@CALLS or a file",
        "generation": "way from the step: the same",
        "eta": "noise on the way from the step, as DDIM's eta",
        "eta_window": "share of that way in which it is on, as 0:1",
        "rescale": "give z its old norm back after the edit",
        "boundary.C": "penalty of the SVM",
        "boundary.standardise": "fit to standardised coordinates",
    },
    defaults={"latent": "both"},
    partial=True,
)
SETTINGS = Fields(
    EditSettings,
    only=("sampler", "population", "budget", "most_calls", "screen_images", "final_images", "report_images"),
    texts={
        "sampler": "what proposes edits",
        "population": "of NSGA-II",
        "budget": "denoiser calls of screened edits",
        "most_calls": "bound on the calls of what is chosen; 0: none",
        "screen_images": "images that an edit is first tried on",
        "final_images": "images that the front is judged on",
        "report_images": "held-out images of the report",
    },
    partial=True,
)
AGAIN = Fields(EditSubject, only=tuple(JUDGING), texts=JUDGING, partial=True, shows_defaults=False)
Schedules = Annotated[
    list[Path] | None,
    typer.Option("--schedule", help="a schedule's file to try as a way besides presets; may be repeated"),
]
Work = Annotated[Path | None, into("--work", help="keeps inversions and judges; by default in ~/.cache", check=folder)]


def _subject(fields: dict[str, Any], fit_way: str | None = None) -> EditSubject:
    """The subject; `fit_way` is how examples are inverted unless the fields say it."""
    from fewstep.errors import ConfigurationError
    from fewstep.tasks.editing.path import way_of

    if not fields.get("model"):
        raise ConfigurationError("say which model to edit with: --model NAME or --model DIRECTORY")
    _check_judge_steps(fields)
    ways = {"fit_way": fields.get("fit_way", fit_way), "text_way": fields.get("text_way")}
    return built(EditSubject, {**fields, **{name: way_of(way) for name, way in ways.items() if way is not None}})


def _check_judge_steps(fields: dict[str, Any]) -> None:
    from fewstep.errors import ConfigurationError

    if "judge_steps" in fields and fields.get("judge") != TRAIN:
        raise ConfigurationError(f"--judge-steps are those of --judge {TRAIN}: give both, or leave it out")


@app.command("fit")
@options(subject=SUBJECT, edit=EDIT, execution=DEVICE)
def fit_command(
    subject: dict[str, Any],
    edit: dict[str, Any],
    execution: ExecutionSettings,
    out: Annotated[Path, into("--out", help="folder for the boundaries", check=folder)],
    step: Annotated[str, typer.Option(help="edit step: a time as 500, lambda=-1.2, or auto (by radius)")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="write boundaries also where classes do not separate")] = False,
    work: Work = None,
    as_json: AsJson = False,
) -> None:
    """Fit the boundaries of an attribute at a step: linear SVMs in z and h, with their held-out accuracy."""
    from fewstep.pipeline.editing import boundaries as editing
    from fewstep.tasks.editing.bench import make_bench
    from fewstep.tasks.editing.path import check_step, way_of

    chosen, given = _subject(subject), tuple(edit)
    ways: dict[str, Any] = {name: way_of(edit[name]) for name in ("inversion", "generation") if name in edit}
    boundary = {"images": chosen.examples, **edit.pop("boundary", {})}
    fields: dict[str, Any] = {"latent": "both", **edit, **ways, "boundary": boundary}
    # What cannot be is refused before anything is computed: the step alone may take that.
    EditConfig.build(**fields, step=0.0)
    bench = make_bench(chosen, work or editing.cache_folder(), execution.device)
    editing.check_measures(bench)
    noise = bench.files.noise
    lambda_ = editing.found_step(bench)[0].step if step == editing.AUTO else editing.parse_step(step, noise)
    check_step(lambda_, noise)
    config = EditConfig.build(**fields, step=lambda_)
    editing.check_config(config, given, bench)
    boundaries = editing.fit(bench, config, out, force)
    facts = editing.facts_of(boundaries)
    if as_json:
        print_json({"folder": out, "step": lambda_, "time": noise.time(lambda_), "boundaries": facts})
        return
    typer.echo(f"{bench.attribute.name} at t = {noise.time(lambda_):.0f} (lambda {lambda_:.3f}), in {out}")
    for latent_name, fact in facts.items():
        typer.echo(f"  {latent_name}: right on {fact['accuracy']:.1%} of {fact['held_out']} held-out images")


@app.command("apply")
@options(judging=AGAIN)
def apply_command(
    judging: dict[str, Any],
    boundary: Annotated[Path, typer.Option("--boundary", help="folder made by `fewstep edit fit` or by a search")],
    out: Annotated[Path, into("--out", help="folder for the images", check=folder)],
    strengths: Annotated[str, typer.Option(help="standard deviations, comma-separated")] = "-3,0,3,6",
    images: Annotated[Path | None, typer.Option(help="a folder of your own, instead of held-out ones")] = None,
    count: Annotated[int, typer.Option(min=2, help="how many images")] = 100,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="only make images")] = False,
    work: Work = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Edit held-out images (or your own) at several strengths; 0 is the reconstruction, and reported as such.

    Judged by the fit's judge or by --judge; your own images where --judge is given.
    """
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline.editing import boundaries as editing
    from fewstep.pipeline.editing.pasting import write_pasted
    from fewstep.tasks.editing.bench import make_bench
    from fewstep.tasks.editing.identity import SURROUNDINGS
    from fewstep.tasks.editing.judge import check_named

    asked = _numbers(strengths)
    if no_judge and judging:
        option = f"--{next(iter(judging)).replace('_', '-')}"
        raise ConfigurationError(f"--no-judge measures nothing: leave {option} out, or --no-judge")
    _check_judge_steps(judging)
    subject, config, boundaries = editing.load_fit(boundary)
    subject = editing.rejudged(subject, judging)
    judged = bool(judging) if images is not None else not no_judge
    if judged:
        check_named(subject)
    bench = make_bench(subject, work or editing.cache_folder(), device)
    bench.use(boundaries, config)
    if judged:
        editing.check_measures(bench, loaded=images is None or bench.measure is None)
    if images is not None:
        originals = editing.loaded_images(images, bench, count)
        applied = editing.apply_to_images(bench, config, boundaries, originals, asked, judged)
    else:
        originals = bench.originals("report", count).images
        applied = editing.apply(bench, config, asked, count, "report", judged)
    files = editing.write_images(originals, applied, out)
    if images is not None and (whole := write_pasted(images, originals, applied, out)):
        files["pasted"] = whole
    figures = editing.figures_of(applied)
    if as_json:
        by = {"judge": subject.judge, "identity": subject.identity or SURROUNDINGS} if judged else {}
        print_json({"folder": out, "images": len(originals), **by, "strengths": figures, "files": files})
        return
    for figure in figures:
        if "success" not in figure:
            continue
        typer.echo(
            f"strength {figure['strength']:5g}  success {figure['success']:.2f} "
            f"({figure['success_low']:.2f} to {figure['success_high']:.2f})  identity {figure['identity']:.2f}  "
            f"{figure['nfe']:.0f} calls"
        )
    typer.echo(f"{len(originals)} images a strength in {out}, side by side in {files['grid.png']}")


def _numbers(text: str) -> list[float]:
    from fewstep.errors import ConfigurationError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)) or len(set(numbers)) < len(numbers):
        raise ConfigurationError(f"strengths {text!r}: give numbers, each once, as -3,0,3")
    return numbers


@app.command("search")
@options(subject=SUBJECT, chosen=SETTINGS, execution=EXECUTION)
def search_command(
    subject: dict[str, Any],
    chosen: dict[str, Any],
    execution: ExecutionSettings,
    out: Annotated[Path, into("--out", help="directory of the search", check=folder)],
    step: Annotated[
        str | None, typer.Option(help="the one edit step [default: the search chooses among --steps]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="how many edit steps, even in time [default: 12]")] = None,
    schedule: Schedules = None,
    keep: Annotated[str | None, typer.Option(help="decisions that are not searched, comma-separated")] = None,
    strip: Annotated[
        int, typer.Option(min=0, help="strengths at which what was found is shown on the dashboard; 0: none")
    ] = STRIP,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the search in --out")] = False,
    tracking_uri: Tracking = None,
    work: Work = None,
    as_json: AsJson = False,
) -> None:
    """Search edits for success, identity and few calls at once, and report the choice on images nothing has seen."""
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline.editing import boundaries as editing
    from fewstep.pipeline.editing import pictures as editing_pictures
    from fewstep.pipeline.problems.edits import EditProblem
    from fewstep.pipeline.study import Study
    from fewstep.search_spaces.point import edit_of
    from fewstep.tasks.editing.bench import make_bench
    from fewstep.tasks.editing.judge import with_judge

    cache = work or editing.cache_folder()
    if strip == 1:
        raise ConfigurationError("--strip 1: one strength is no strip, give 2 or more, or 0 for none")
    if resume and (subject or chosen or schedule or any(given is not None for given in (step, steps, keep))):
        raise ConfigurationError("--resume goes on with the stored settings: leave the other options away")
    if resume:
        study = Study.load(out, cache)
    else:
        settings = _settings(_subject(subject, SEARCH_FIT_WAY), step, steps, schedule or [], keep or "", chosen)
        study = Study(out, settings, cache)
        if study.exists:
            raise ConfigurationError(f"{out} holds a study already: add --resume to go on, or choose another --out")
    if not isinstance(study.problem, EditProblem):
        raise ConfigurationError(f"{out} holds no search of edits: go on with `fewstep search --resume --out {out}`")
    kept = {} if strip == STRIP else {"strip": strip}
    resumed([NAME, "search"], study, execution, work=work, tracking_uri=tracking_uri, json=as_json, **kept)
    files = study.run(execution, typed(), None if as_json else _tell).files
    best = study.problem.chosen(study.state())
    assert best is not None
    config = edit_of(best.candidate.point)
    assert config is not None
    record = next(r for r in reversed(study.reported()) if r.candidate == best.candidate.hash)
    bench = make_bench(with_judge(study.problem.settings.subject), cache, execution.device)
    # What was found is tried, and reported as it is.
    editing.fit(bench, config, out, force=True)
    before = bench.calls
    files["grid.png"] = editing_pictures.draw(editing_pictures.at_strengths(bench, config), out / "grid.png")
    files |= editing_pictures.write_strip(bench, config, strip, out / "strengths")
    drawn = bench.calls - before
    uri = _track(study, tracking_uri)
    figures = record.metrics
    if as_json:
        told = {"folder": out, "edit": config.model_dump(), "figures": figures, "files": files, "tracking": uri}
        print_json({**told, "calls_of_pictures": drawn})
        return
    typer.echo(
        f"found: success {figures['success']:.2f} ({figures['success_low']:.2f} to {figures['success_high']:.2f}), "
        f"identity {figures['identity']:.2f}, {figures['nfe']:.0f} calls, t = {bench.files.noise.time(config.step):.0f}"
        f", {config.latent}; its pictures took {drawn:,} calls; apply it with `fewstep edit apply --boundary {out}`"
    )


def _settings(
    subject: EditSubject, step: str | None, steps: int | None, files: list[Path], keep: str, chosen: dict[str, Any]
) -> EditSettings:
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline.editing import boundaries as editing
    from fewstep.search_spaces.edit import BoundaryConfig
    from fewstep.search_spaces.schedule import load_schedule
    from fewstep.tasks.editing.asked import find_edited

    if chosen.get("population") and chosen.get("sampler") not in POPULATIONS:
        raise ConfigurationError(f"--population is that of --sampler {' or '.join(POPULATIONS)}: leave it out")
    one = step not in (None, editing.AUTO)
    if one and steps is not None:
        raise ConfigurationError(
            f"--step {step} is one edit step, --steps are several to choose among: give one of both"
        )
    noise = find_edited(subject).noise
    among = (editing.parse_step(str(step), noise),) if one else editing.step_grid(noise, steps or STEPS)
    base = EditConfig.build(step=_base_step(among, noise), boundary=BoundaryConfig(images=subject.examples))
    kept = tuple(part.strip() for part in keep.split(",") if part.strip())
    schedules = tuple(load_schedule(path) for path in files)
    return built(
        EditSettings,
        {
            **chosen,
            "study": study_name(subject),
            "subject": subject,
            "steps": among,
            "base": base,
            "kept": kept,
            "schedules": schedules,
        },
    )


def _base_step(steps: tuple[float, ...], noise: Any) -> float:
    """The step nearest to the middle of the model's time, the published one."""
    middle = 0.5 * (noise.time(noise.lambda_start) + noise.time(noise.lambda_end))
    return min(steps, key=lambda s: abs(noise.time(s) - middle))


def _tell(record: Any) -> None:
    figures = record.metrics
    text = record.error or (
        f"success {figures['success']:.2f}  identity {figures['identity']:.2f}  {figures['nfe']:.0f} calls"
    )
    typer.echo(f"{record.study}  {record.rung:7} {record.trial:4} {record.origin:20} {text}")


def _track(study: Any, uri: str | None) -> str:
    """Log the search to MLflow; a warning where the server refuses, since nothing is lost."""
    import sys

    from fewstep.errors import StorageError, TrackingError
    from fewstep.pipeline.publishing import log
    from fewstep.storage.masking import masked_argument
    from fewstep.storage.tracking import default_tracking_uri

    target = uri or default_tracking_uri(study.root)
    try:
        log(study, target)
    except (TrackingError, StorageError) as error:
        print(f"warning: {' '.join(str(error).split())}; the search in {study.root} is whole", file=sys.stderr)
    return masked_argument(str(target))
