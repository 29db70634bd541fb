"""`fewstep edit`: fit boundaries of an attribute, apply them, and search for the edit that works best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.pipeline.commands.options import AsJson, Device, Features, Guidance, Model, Seed, print_json

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
JudgeFolder = Annotated[str, typer.Option("--judge", help="folder of a classifier of your own that judges success")]
JudgeSteps = Annotated[int, typer.Option("--judge-steps", min=1, help="training steps of the judge, where it is made")]
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
    tracking_uri: Annotated[str | None, typer.Option(help="log figures and the grid to this MLflow server")] = None,
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
    if tracking_uri:
        pass
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
