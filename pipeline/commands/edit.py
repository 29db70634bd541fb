"""`fewstep edit`: fit boundaries of an attribute, apply them, and search for the edit that works best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.pipeline.commands.options import AsJson, Device, Features, Guidance, Model, Seed, print_json, typed

NAME = "edit"

app = typer.Typer(
    name=NAME,
    help="Edit images without training: cross an attribute's boundary once, at one step.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Data = Annotated[str, typer.Option("--data", help="data set name, or a folder with a folder of images for each class")]
AttributeName = Annotated[
    str, typer.Option("--attribute", help="a known attribute, or POSITIVE/NEGATIVE classes, as Boot/Sneaker")
]
SourceOption = Annotated[str, typer.Option("--source", help="images (inverted), samples, or text (by two prompts)")]
Examples = Annotated[int, typer.Option("--examples", min=8, help="images of each side that boundaries are fitted to")]
FitWay = Annotated[str, typer.Option("--fit-way", help="how they are inverted: PRESET/GRID@CALLS or a schedule's file")]
Prompt = Annotated[str, typer.Option("--prompt", help="text: the prompt of what is edited")]
PositivePrompt = Annotated[str, typer.Option("--positive-prompt", help="text: the prompt that has the attribute")]
NegativePrompt = Annotated[str, typer.Option("--negative-prompt", help="text: the prompt that does not")]
JudgeFolder = Annotated[str, typer.Option("--judge", help="classifier that judges success: a name or a folder")]
JudgeSteps = Annotated[int, typer.Option("--judge-steps", min=1, help="training steps of the judge, where it is made")]
Schedules = Annotated[
    list[Path] | None,
    typer.Option("--schedule", help="a schedule's file to try as a way besides presets; may be repeated"),
]
Work = Annotated[Path | None, typer.Option("--work", help="keeps inversions and judges; by default in ~/.cache")]


def _subject(**fields: Any) -> Any:
    from fewstep.tasks.editing.path import way_of
    from fewstep.tasks.editing.subject import EditSubject

    return EditSubject.build(**fields | {"fit_way": way_of(fields["fit_way"])})


@app.command("fit")
def fit_command(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="folder for the boundaries")],
    data: Data = "",
    attribute: AttributeName = "",
    step: Annotated[str, typer.Option(help="edit step: a time as 500, lambda=-1.2, or auto (by radius)")] = "auto",
    latent: Annotated[str, typer.Option(help="z (the noisy image), h (the bottleneck) or both")] = "both",
    inversion: Annotated[str, typer.Option(help="way to the step: PRESET/GRID@CALLS or a file")] = "ddim/uniform-t@40",
    generation: Annotated[str, typer.Option(help="way from the step: the same")] = "ddim/uniform-t@40",
    c: Annotated[float, typer.Option("--svm-c", help="penalty of the SVM")] = 1.0,
    standardise: Annotated[bool, typer.Option("--standardise", help="fit to standardised coordinates")] = False,
    eta: Annotated[float, typer.Option(min=0, max=1, help="noise on the way from the step, as DDIM's eta")] = 0.0,
    eta_window: Annotated[str, typer.Option(help="share of that way in which it is on")] = "0:1",
    rescale: Annotated[bool, typer.Option("--rescale", help="give z its old norm back after the edit")] = False,
    examples: Examples = 200,
    fit_way: FitWay = "ddim/uniform-t@40",
    source: SourceOption = "images",
    prompt: Prompt = "",
    positive_prompt: PositivePrompt = "",
    negative_prompt: NegativePrompt = "",
    guidance: Guidance = 1.0,
    features: Features = "auto",
    judge: JudgeFolder = "",
    judge_steps: JudgeSteps = 2500,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="write boundaries also where classes do not separate")] = False,
    work: Work = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Fit the boundaries of an attribute at a step: linear SVMs in z and h, with their held-out accuracy."""
    from fewstep.pipeline import editing
    from fewstep.search_spaces.edit import EditConfig
    from fewstep.tasks.editing.bench import make_bench
    from fewstep.tasks.editing.path import check_step, way_of

    subject = _subject(
        model=model, source=source, data=data, attribute=attribute, prompt=prompt, positive_prompt=positive_prompt,
        negative_prompt=negative_prompt, guidance=guidance, fit_way=fit_way, examples=examples, features=features,
        judge=judge, judge_steps=judge_steps, seed=seed,
    )  # fmt: skip
    bench = make_bench(subject, work or editing.cache_folder(), device)
    noise = bench.files.noise
    lambda_ = editing.found_step(bench)[0].step if step == editing.AUTO else editing.parse_step(step, noise)
    check_step(lambda_, noise)
    config = EditConfig.build(
        step=lambda_, latent=latent, inversion=way_of(inversion), generation=way_of(generation), eta=eta,
        eta_window=_window(eta_window), rescale=rescale,
        boundary={"C": c, "standardise": standardise, "images": examples},
    )  # fmt: skip
    boundaries = editing.fit(bench, config, out, force)
    facts = editing.facts_of(boundaries)
    if as_json:
        print_json({"folder": out, "step": lambda_, "time": noise.time(lambda_), "boundaries": facts})
        return
    typer.echo(f"{bench.attribute.name} at t = {noise.time(lambda_):.0f} (lambda {lambda_:.3f}), in {out}")
    for latent_name, fact in facts.items():
        typer.echo(f"  {latent_name}: right on {fact['accuracy']:.1%} of {fact['held_out']} held-out images")


@app.command("apply")
def apply_command(
    boundary: Annotated[Path, typer.Option("--boundary", help="folder made by `fewstep edit fit` or by a search")],
    out: Annotated[Path, typer.Option("--out", help="folder for the images")],
    strengths: Annotated[str, typer.Option(help="standard deviations, comma-separated")] = "-3,0,3,6",
    images: Annotated[Path | None, typer.Option(help="a folder of your own, instead of held-out ones")] = None,
    count: Annotated[int, typer.Option(min=2, help="how many images")] = 100,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="only make images")] = False,
    work: Work = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Edit held-out images (or your own) at several strengths; 0 is the reconstruction, and reported as such."""
    from fewstep.pipeline import editing
    from fewstep.tasks.editing.bench import make_bench

    subject, config, boundaries = editing.load_fit(boundary)
    asked = _numbers(strengths)
    bench = make_bench(subject, work or editing.cache_folder(), device)
    if images is not None:
        originals = editing.loaded_images(images, bench)[:count]
        applied = editing.apply_to_images(bench, config, boundaries, originals, asked)
    else:
        originals = bench.originals("report", count).images
        applied = editing.apply(bench, config, asked, count, "report", judged=not no_judge)
    files = editing.write_images(originals, applied, out)
    figures = editing.figures_of(applied)
    if as_json:
        print_json({"folder": out, "images": len(originals), "strengths": figures, "files": files})
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
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigurationError(f"strengths {text!r}: give numbers, as -3,0,3") from None


def _window(text: str) -> tuple[float, float]:
    from fewstep.errors import ConfigurationError

    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else "1")
    except ValueError:
        raise ConfigurationError(f"eta window {text!r}: give shares of the way, as 0:0.5") from None


@app.command("search")
def search_command(
    out: Annotated[Path, typer.Option("--out", help="directory of the search")],
    model: Annotated[str, typer.Option("--model", help="a bundled model's name or a diffusers directory")] = "",
    data: Data = "",
    attribute: AttributeName = "",
    step: Annotated[str, typer.Option(help="the one edit step, or auto: the search chooses among --steps")] = "auto",
    steps: Annotated[int, typer.Option(min=1, help="how many edit steps, even in time")] = 12,
    schedule: Schedules = None,
    keep: Annotated[str, typer.Option(help="decisions that are not searched, comma-separated")] = "",
    sampler: Annotated[str, typer.Option(help="tpe, nsgaii or random (Optuna)")] = "tpe",
    population: Annotated[int, typer.Option(min=2, help="of NSGA-II")] = 20,
    budget: Annotated[int, typer.Option(min=1, help="denoiser calls of screened edits")] = 100_000,
    most_calls: Annotated[int, typer.Option(min=0, help="bound on the calls of what is chosen; 0: none")] = 0,
    screen_images: Annotated[int, typer.Option(min=2, help="images that an edit is first tried on")] = 64,
    final_images: Annotated[int, typer.Option(min=2, help="images that the front is judged on")] = 200,
    report_images: Annotated[int, typer.Option(min=2, help="held-out images of the report")] = 500,
    examples: Examples = 200,
    fit_way: FitWay = "dpm-solver-2m/uniform-t@10",
    source: SourceOption = "images",
    prompt: Prompt = "",
    positive_prompt: PositivePrompt = "",
    negative_prompt: NegativePrompt = "",
    guidance: Guidance = 1.0,
    features: Features = "auto",
    judge: JudgeFolder = "",
    judge_steps: JudgeSteps = 2500,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the search in --out")] = False,
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    address: Annotated[str | None, typer.Option(help="join the Ray cluster at this address")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; by default a file in --out")] = None,
    work: Work = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Search edits for success, identity and few calls at once, and report the choice on images nothing has seen."""
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline import editing, editing_pictures
    from fewstep.pipeline.commands.options import execution_settings
    from fewstep.pipeline.editing_study import EditStudy
    from fewstep.tasks.editing.bench import make_bench

    cache = work or editing.cache_folder()
    execution = execution_settings(executor=executor, workers=workers, address=address, device=device)
    if resume:
        study = EditStudy.load(out, cache)
    else:
        subject = _subject(
            model=model, source=source, data=data, attribute=attribute, prompt=prompt,
            positive_prompt=positive_prompt, negative_prompt=negative_prompt, guidance=guidance, fit_way=fit_way,
            examples=examples, features=features, judge=judge, judge_steps=judge_steps, seed=seed,
        )  # fmt: skip
        settings = _settings(
            subject, step=step, steps=steps, schedules=schedule or [], keep=keep, sampler=sampler,
            population=population, budget=budget, most_calls=most_calls, screen_images=screen_images,
            final_images=final_images, report_images=report_images,
        )  # fmt: skip
        study = EditStudy(out, settings, cache)
        if study.exists:
            raise ConfigurationError(f"{out} holds a study already: add --resume to go on, or choose another --out")
    state = study.run(execution, None if as_json else _tell)
    files = study.publish(state, typed())
    found = state.chosen()
    assert found is not None
    config = found.candidate.config
    (record,) = study.measure([("found", config)], state.report, execution)
    bench = make_bench(study.settings.subject, cache, device)
    # What was found is tried, and reported as it is.
    editing.fit(bench, config, out, force=True)
    files["grid.png"] = editing_pictures.draw(editing_pictures.at_strengths(bench, config), out / "grid.png")
    uri = _track(study, files, tracking_uri)
    figures = record.metrics
    if as_json:
        print_json({"folder": out, "edit": config.model_dump(), "figures": figures, "files": files, "tracking": uri})
        return
    typer.echo(
        f"found: success {figures['success']:.2f} ({figures['success_low']:.2f} to {figures['success_high']:.2f}), "
        f"identity {figures['identity']:.2f}, {figures['nfe']:.0f} calls, t = {bench.files.noise.time(config.step):.0f}"
        f", {config.latent}; apply it with `fewstep edit apply --boundary {out}`"
    )


def _settings(subject: Any, **given: Any) -> Any:
    from fewstep.errors import ConfigurationError
    from fewstep.pipeline import editing
    from fewstep.pipeline.editing_settings import EditSettings
    from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
    from fewstep.search_spaces.schedule import load_schedule
    from fewstep.tasks.models.files import find_model

    if not subject.model:
        raise ConfigurationError("say which model to edit with: --model NAME or --model DIRECTORY")
    noise = find_model(subject.model).noise
    grid = editing.step_grid(noise, given.pop("steps"))
    step = given.pop("step")
    chosen = grid if step == editing.AUTO else (editing.parse_step(step, noise),)
    base = EditConfig.build(step=_base_step(chosen, noise), boundary=BoundaryConfig(images=subject.examples))
    kept = tuple(part.strip() for part in given.pop("keep").split(",") if part.strip())
    schedules = tuple(load_schedule(path) for path in given.pop("schedules"))
    name = f"edit-{subject.attribute or 'prompted'}"
    fields = {"study": name, "subject": subject, "steps": chosen, "base": base, "kept": kept, "schedules": schedules}
    return EditSettings.build(**fields, **given)


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


def _track(study: Any, files: dict[str, Path], uri: str | None) -> str:
    """Log the search to MLflow; a warning where the server refuses, since nothing is lost."""
    import sys

    from fewstep.errors import StorageError, TrackingError
    from fewstep.pipeline.editing_state import FINALS, SCREEN
    from fewstep.storage.tracking import default_tracking_uri, sync

    target = uri or default_tracking_uri(study.root)
    try:
        sync(study.store, study.settings.study, target, artifacts=files, rung=SCREEN, front_rung=FINALS)
    except (TrackingError, StorageError) as error:
        print(f"warning: {' '.join(str(error).split())}; the search in {study.root} is whole", file=sys.stderr)
    return str(target)
