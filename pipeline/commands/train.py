"""`fewstep train`: train a zoo entry from its recipe, resuming where a killed run stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import AsJson, Device, folder, into, print_json

NAME = "train"


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="a file that ends with .toml, for your own --data; or digits-ddpm, digits-edm, fashion-ddpm, "
            "fashion-lfm, fashion-lfm-dit, fashion-lfm-inpaint or fashion-lfm-layout; or a judge of images: "
            "fashion-judge, digits-judge"
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="your images: a folder, Parquet, datasets on disk, tars, LMDB, .npz, a data set")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="directory of a pretrained AutoencoderKL, to train on its latents")
    ] = None,
    out: Annotated[Path | None, into(help="model directory to write [default: models/RECIPE]", check=folder)] = None,
    checkpoints: Annotated[Path | None, into(help="where checkpoints are kept", check=folder)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="other number of optimiser steps")] = None,
    autoencoder_steps: Annotated[
        int | None, typer.Option(min=1, help="other number of the autoencoder's steps, for latent models")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="folder of the entry that the recipe starts from [default: the zoo's]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="another seed, for a second checkpoint judged by the same classifier [default: 0]"),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a network; the result is a diffusers pipeline directory.

    With a named recipe also its autoencoder, classifier and reference moments, on a bundled data set; with a
    RECIPE.toml the network alone, on your --data. A killed run goes on where it was.
    """
    import torch

    from fewstep.tasks.training.entry import train_entry
    from fewstep.tasks.training.judge import JUDGE_RECIPES, train_judge
    from fewstep.tasks.training.own import recipe_file, train_own
    from fewstep.tasks.training.processes import is_first, several
    from fewstep.tasks.training.recipes import training_recipe
    from fewstep.tasks.worker import check_device

    check_device(device)
    begun = time.monotonic()

    def show(stage: str, step: int, total: int, loss: float) -> None:
        if as_json:
            return
        if stage == "data":
            typer.echo(f"{step:,} of {total:,} images encoded  {time.monotonic() - begun:.0f} s")
        else:
            typer.echo(f"{stage} step {step}/{total}  loss {loss:.4f}  {time.monotonic() - begun:.0f} s")

    def finish(target: Path, figures: dict[str, Any]) -> None:
        if not is_first():
            return
        if as_json:
            print_json({"folder": target, **figures})
        else:
            typer.echo(f"{target}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))

    caches = Path.home() / ".cache" / "fewstep" / "checkpoints"
    if threads:
        torch.set_num_threads(threads)
    if recipe.lower().endswith(".toml"):
        if autoencoder_steps is not None or start is not None:
            raise ConfigurationError(
                "a recipe for one's own data trains from scratch, on --vae: leave --autoencoder-steps and --from out"
            )
        if data is None:
            raise ConfigurationError(f"{recipe} says how to train, not on what: give --data")
        fields = recipe_file(Path(recipe)) | {
            name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None
        }
        name = str(fields.setdefault("name", Path(recipe).stem)) + (f"-seed{seed}" if seed else "")
        target, kept = out or Path("models") / name, checkpoints or caches / name
        folder(target)
        folder(kept)
        finish(target, train_own(fields, data, vae, target, kept, device, show))
        return
    if several():
        raise ConfigurationError(f"{recipe} trains in one process: start it without a launcher")
    if data is not None or vae is not None:
        raise ConfigurationError(f"{recipe} has data of its own: give a recipe.toml with --data and --vae")
    if recipe in JUDGE_RECIPES:
        if autoencoder_steps is not None:
            raise ConfigurationError(f"{recipe} has no autoencoder: leave --autoencoder-steps out")
        if start is not None:
            raise ConfigurationError(f"{recipe} is trained from scratch: leave --from out")
        if seed is not None:
            raise ConfigurationError(f"{recipe} is what all others are judged by: leave --seed out")
        judge = JUDGE_RECIPES[recipe].model_copy(update={} if steps is None else {"steps": steps})
        target = out or Path("models") / recipe
        folder(target)
        finish(target, train_judge(judge, target, device, show))
        return
    chosen = training_recipe(recipe)
    if steps is not None:
        chosen = chosen.model_copy(update={"steps": steps})
    if autoencoder_steps is not None:
        if not chosen.trains_autoencoder:
            raise ConfigurationError(f"{recipe} trains no autoencoder: leave --autoencoder-steps out")
        assert chosen.autoencoder is not None
        fewer = chosen.autoencoder.model_copy(update={"steps": autoencoder_steps})
        chosen = chosen.model_copy(update={"autoencoder": fewer})
    if seed:
        chosen = chosen.reseeded(seed)
    target = out or Path("models") / chosen.name
    kept = checkpoints or caches / chosen.name
    folder(target)
    folder(kept)
    finish(target, train_entry(chosen, target, kept, device, show, start))
