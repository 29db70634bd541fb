"""`fewstep evaluate`: the Frechet distance of one schedule on a model, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import EvaluationError
from fewstep.pipeline.commands.options import (
    AsJson,
    Classifier,
    ClassifierScale,
    Device,
    Features,
    Guidance,
    Labels,
    Model,
    NegativePrompt,
    Prompts,
    Reference,
    Seed,
    Statistics,
    conditions,
    print_json,
)

NAME = "evaluate"


def command(
    model: Model,
    schedule: Annotated[str, typer.Option(help="a schedule's JSON file, or PRESET/GRID@CALLS")],
    images: Annotated[int, typer.Option(min=2, help="how many images to sample")] = 5000,
    out: Annotated[Path, typer.Option(help="tables that keep the result and its moments")] = Path("runs/evaluations"),
    seed: Seed = 1_000_003,
    features: Features = "auto",
    reference: Reference = "auto",
    labels: Labels = "none",
    guidance: Guidance = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = "",
    classifier: Classifier = "",
    classifier_scale: ClassifierScale = 0.0,
    statistics: Statistics = "",
    executor: Annotated[str, typer.Option(help="ray or in-process")] = "in-process",
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0: one a core, or one a GPU")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate a schedule. The same evaluation is never computed twice; more images compute only the new ones."""
    from fewstep.pipeline.commands.search import _execution
    from fewstep.pipeline.evaluation import Candidate, Evaluator
    from fewstep.pipeline.loop import Driver, evaluate_all
    from fewstep.pipeline.rungs import Rung
    from fewstep.pipeline.study import make_executor, parse_teacher
    from fewstep.storage.lease import Lease
    from fewstep.storage.store import Store
    from fewstep.tasks.models.files import find_model
    from fewstep.tasks.worker import WorkerSettings

    execution = _execution(executor=executor, workers=workers, address=None, device=device)
    files, store = find_model(model), Store(out)
    asked = conditions(labels, guidance, prompts, negative_prompt, classifier, classifier_scale)
    asked.check(files.null_label, files.text)
    parsed = parse_teacher(schedule, files)
    rung = Rung("report", "moments", images, seed)
    with Lease(out):
        evaluator = Evaluator("evaluations", files, store, features, reference, None, asked, statistics)
        key = evaluator.key(parsed, rung)
        past = store.evaluations.records(where={"study": "evaluations"})
        record = next((r for r in past if r.key == key), None)
        if record is None:
            worker = WorkerSettings(model, features, device, conditions=asked, statistics=statistics)
            workhorse = make_executor(execution, worker)
            driver = Driver(evaluator, workhorse, store, order=len(past))
            (record,) = evaluate_all([(Candidate(len(past), parsed, "evaluate"), rung)], driver)
            workhorse.close()
    if record.status != "complete" or record.value is None:
        raise EvaluationError(record.error)
    if as_json:
        print_json(
            {
                "model": record.model,
                "schedule": record.candidate,
                "nfe": record.nfe,
                "metric": record.features,
                "value": record.value,
                "low": record.low,
                "high": record.high,
                "images": record.images,
                "seed": record.seed,
                "denoiser_calls": record.denoiser_calls,
            }
        )
        return
    ends = "" if record.low is None else f" ({record.low:.4f} to {record.high:.4f})"
    typer.echo(f"{record.features} {record.value:.4f}{ends} at NFE {record.nfe}, {record.images:,} images")
