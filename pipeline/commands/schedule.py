"""`fewstep schedule`: bring published schedules into our format, show what one decides, collect what was found."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.errors import ConfigurationError, DataError, ScheduleError
from fewstep.pipeline.commands.options import AsJson, Model, folder, into, print_json, writable
from fewstep.search_spaces.schedule import MIN_GAP, SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.formula import Formula
from fewstep.search_spaces.schedule.published import read_published
from fewstep.search_spaces.schedule.published_files import find_published, read_json
from fewstep.tasks.models.noise_schedule import NoiseSchedule

NAME = "schedule"

app = typer.Typer(
    name=NAME,
    help="Import published schedules, show any schedule, and collect found ones for other models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

# Relative slack for times that went through float32 and a search: one published schedule ends at 0.000999999.
SLACK = 1e-4


def _place(path: Path | None) -> Path | None:
    return writable(path) if path is not None and path.suffix == ".json" else folder(path)


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="a published .pth file, or decisions as .json")],
    model: Model,
    out: Annotated[Path, into(help="folder, or the .json file of the only schedule", check=_place)] = Path("schedules"),
    index: Annotated[int | None, typer.Option(min=0, help="only the schedule at this place in the file")] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="only schedules of that many denoiser calls")] = None,
    drop_skips: Annotated[bool, typer.Option("--drop-skips", help="leave out skip factors of another network")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn published USF schedules into our JSON, one file a schedule, on the model's own noise schedule."""
    from fewstep.files import write_text
    from fewstep.tasks.models.files import find_model

    files = find_model(model)
    schedules = import_schedules(file, files.noise, files.prediction_type, index, nfe)
    if drop_skips:
        schedules = [schedule.model_copy(update={"skips": ()}) for schedule in schedules]
    if out.suffix == ".json" and len(schedules) != 1:
        counts = ", ".join(str(s.nfe) for s in schedules)
        raise ConfigurationError(
            f"--out {out} is one file, {file} holds {len(schedules)} schedules (of {counts} calls): "
            "choose one with --index or --nfe, or give a folder"
        )
    written: dict[str, SolverSchedule] = {}
    for schedule in schedules:
        path = out if out.suffix == ".json" else out / f"nfe{schedule.nfe}.json"
        if str(path) in written:
            path = out / f"nfe{schedule.nfe}-{schedule.hash}.json"
        written[str(write_text(path, schedule.to_json(indent=2) + "\n"))] = schedule
    if as_json:
        print_json({"schedules": [{"file": path, **_facts(schedule)} for path, schedule in written.items()]})
        return
    for name, schedule in written.items():
        needs = ", needs --statistics" if schedule.needs_statistics else ""
        typer.echo(f"{name}: {len(schedule.steps)} steps, {schedule.nfe} calls{needs}")


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="a schedule's JSON file")],
    as_json: AsJson = False,
) -> None:
    """Print what a schedule decides, one line a step."""
    if file.suffix in (".pth", ".pt", ".pkl"):
        raise ConfigurationError(f"{file} is not in our format: turn it into it with `fewstep schedule import`")
    schedule = load_schedule(file)
    if as_json:
        print_json({**_facts(schedule), "schedule": schedule.model_dump(mode="json")})
        return
    title = schedule.name or file.stem
    typer.echo(f"{title}  {schedule.hash}  {schedule.nfe} calls, first call: {schedule.first_call}")
    for i, step in enumerate(schedule.steps):
        start, end = schedule.lambdas[i : i + 2]
        line = f"{i + 1:3}  lambda {start:8.4f} -> {end:8.4f}  {step.prediction:5}  {_describe(step.predictor)}"
        if step.corrector is not None:
            kind = "implicit" if step.implicit else "pseudo"
            line += f"  {kind} corrector: {_describe(step.corrector)}"
        typer.echo(line)
    extras = {"guidance": schedule.guidance, "skips": schedule.skips, "threshold": schedule.threshold}
    for name, value in {**extras, **schedule.provenance}.items():
        if value not in (None, ()):
            typer.echo(f"{name}: {value}")


@app.command("collect")
def collect_command(
    sources: Annotated[
        list[Path], typer.Argument(help="folders of finished searches, or schedules that they exported")
    ],
    out: Annotated[Path, into(help="the portfolio, a .json file", check=writable)] = Path("portfolio.json"),
    each: Annotated[int, typer.Option(min=1, help="schedules of a study at each number of calls")] = 2,
    as_json: AsJson = False,
) -> None:
    """Write what searches found as a portfolio, which `fewstep search --portfolio FILE` begins with elsewhere."""
    from fewstep.files import write_text
    from fewstep.pipeline.collected import collected

    made = collected(sources, each)
    write_text(out, made.model_dump_json(indent=1) + "\n")
    nfes = sorted({entry.schedule.nfe for entry in made.entries})
    facts = {"file": str(out), "schedules": len(made.entries), "nfes": nfes}
    if as_json:
        print_json(facts)
        return
    calls = ", ".join(map(str, nfes))
    typer.echo(f"{out}: {len(made.entries)} schedules of {calls} calls")


def import_schedules(
    file: Path, noise: NoiseSchedule, output: str, index: int | None = None, nfe: int | None = None
) -> list[SolverSchedule]:
    """The published schedules of a file, equal ones once, with its name and sha256 as provenance.

    Raises DataError where the file cannot be read or is unsafe, ScheduleError where an entry makes no schedule
    of this model, ConfigurationError where nothing is at `index` or has `nfe` calls.
    """
    from fewstep.tasks.sampling.compile import compile_schedule

    content = read_json(file) if file.suffix == ".json" else load_safely(file)
    entries = list(find_published(content, str(file)).items())
    if index is not None and index >= len(entries):
        raise ConfigurationError(f"--index {index}: {file} holds {len(entries)} schedules, counted from 0")
    source = {"source": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    to_lambda = published_time(noise)
    found: dict[str, SolverSchedule] = {}
    for where, decisions in entries if index is None else entries[index : index + 1]:
        try:
            schedule = read_published(decisions, to_lambda, f"{file.stem}{where and f' {where}'}")
            _check_start(schedule, noise)
            if not schedule.needs_statistics:
                compile_schedule(schedule, noise, output)
        except ScheduleError as error:
            raise ScheduleError(f"{file}{where and f' at {where}'}: {error}") from None
        provenance = source | ({"entry": where} if where else {})
        found.setdefault(schedule.hash, schedule.model_copy(update={"provenance": provenance}))
    chosen = [s for s in found.values() if nfe is None or s.nfe == nfe]
    if not chosen:
        there = ", ".join(sorted({str(s.nfe) for s in found.values()}))
        raise ConfigurationError(f"--nfe {nfe}: {file} has schedules of {there} calls only")
    return chosen


def load_safely(file: Path) -> Any:
    """What a file written by torch.save holds, read without running anything of it.

    Only tensors, plain containers and numbers, NumPy's included, are built; DataError where the file asks for
    anything else, or is no such file.
    """
    import pickle

    import numpy as np
    import torch

    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    scalar: Any = np.float64(0).__reduce__()[0]
    # The published files were written under NumPy 1, where the same function had another address.
    safe: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals([*safe, np.dtype, *dtypes]), warnings.catch_warnings():
            # About the file's pickle protocol; what cannot be read is an error below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL |global: )([\w.]+)", str(error))
        if asked:
            raise DataError(
                f"{file} asks for {asked[1]}, which is neither a tensor nor a number: refused, nothing of it was run; "
                "a published schedule needs no such thing"
            ) from None
        raise DataError(f"{file} is not a file of tensors and numbers: refused, nothing of it was run") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read {file}: {first}; give a published .pth file, or decisions as .json") from error


def published_time(noise: NoiseSchedule) -> Callable[[float], float]:
    """Lambda at a published timestep on this model's noise schedule.

    Variance-preserving models: t in (0, 1], with t_i = (i + 1) / N for step i of N where time is discrete. EDM and
    VE models: t is sigma. What is a hair's breadth from an end of the model's range becomes that end.
    Raises ConfigurationError for other noise; the result ScheduleError for a time outside the model's range.
    """
    from fewstep.tasks.models.noise_families import VarianceExploding
    from fewstep.tasks.models.noise_schedule import ContinuousVP, DiscreteVP

    match noise:
        case DiscreteVP():
            count = len(noise.log_alphas)
            return _within(1 / count, 1.0, lambda t: noise.lambda_at(max(0.0, count * t - 1)), noise)
        case ContinuousVP():
            return _within(0.0, 1.0, lambda t: noise.lambda_at(noise.scale * t), noise)
        case VarianceExploding():
            return _within(noise.sigma_min, noise.sigma_max, lambda sigma: -math.log(sigma), noise)
    raise ConfigurationError(
        f"published schedules are for variance-preserving and EDM models, this one has {type(noise).__name__}"
    )


def _within(low: float, high: float, at: Callable[[float], float], noise: NoiseSchedule) -> Callable[[float], float]:
    def to_lambda(t: float) -> float:
        if not (t > 0 and low * (1 - SLACK) <= t <= high * (1 + SLACK)):
            raise ScheduleError(
                f"outside the model's range {low:g} to {high:g}; is the schedule for another kind of model?"
            )
        value = at(min(high, max(low, t)))
        # Two times of one schedule are never this close, so at most one of them moves to an end.
        return next((end for end in (noise.lambda_start, noise.lambda_end) if abs(value - end) < MIN_GAP), value)

    return to_lambda


def _check_start(schedule: SolverSchedule, noise: NoiseSchedule) -> None:
    from fewstep.tasks.sampling.compile import START_RANGE

    if schedule.lambdas[0] > noise.lambda_start + START_RANGE:
        raise ScheduleError(
            f"timesteps[0] is lambda = {schedule.lambdas[0]:.4g}, this model's noise begins at "
            f"{noise.lambda_start:.4g}: the schedule is for another model"
        )


def _facts(schedule: SolverSchedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "hash": schedule.hash,
        "nfe": schedule.nfe,
        "steps": len(schedule.steps),
        "needs_statistics": schedule.needs_statistics,
    }


def _describe(formula: Formula) -> str:
    """`order 3 from -1 (-2, -3 -2 linear 0.1)`: the points of each derivative, and how it is relaxed."""
    text = f"order {formula.order} from {formula.start}"
    if formula.blend is not None:
        pairs = zip(formula.blend.points, formula.blend.weights, strict=True)
        return f"{text}, mean of {', '.join(f'{weight:.4g} at {point}' for point, weight in pairs)}"
    parts = []
    for derivative in formula.derivatives:
        part = " ".join(str(point) for point in derivative.points)
        if derivative.relaxation != "none":
            part += f" {derivative.relaxation}"
        if derivative.coefficient:
            part += f" {derivative.coefficient:.4g}"
        parts.append(part)
    return f"{text} ({', '.join(parts)})" if parts else text
