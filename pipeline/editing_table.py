"""Edits of several attributes side by side: what a search finds, what it is compared with, and every edit step.

Each attribute has a search of its own beneath the root, and everything is a record of it, so the same command goes on
after a kill. Figures are of the report's images, which no boundary and no search has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import ConfigurationError
from fewstep.pipeline.editing import at_strength, found_step, step_grid
from fewstep.pipeline.editing_evaluation import REPORT, balance
from fewstep.pipeline.editing_local import twin
from fewstep.pipeline.editing_pairs import Outcomes, ahead
from fewstep.pipeline.editing_pictures import Pictures, growing
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.editing_state import SCREEN, EditState
from fewstep.pipeline.editing_study import EditStudy, way_name
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.loop import OnRecord
from fewstep.pipeline.reports.csv import results_csv
from fewstep.search_spaces.edit import PUBLISHED, EditConfig
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.measures import frechet
from fewstep.tasks.editing.radius import CRITERIA, Radius, critical_step, readable_step

NONE, FOUND, DDIM, STOCK, REAL = "none", "found", "found-by-ddim-40+40", "published", "real"
SWEEP, READABLE = "sweep", "readable"
COMPARED_TIMES = (300.0, 700.0)
NOTES = {
    "success": "share of edited images that an independent classifier gives a class of the attribute; Wilson's "
    "interval",
    "identity": "1: untouched, 0: an unrelated real image with the attribute; mean of pixels outside the change region "
    "and of features across the attribute's direction; normal interval over the images",
    "methods": "none: strength 0; found: the search's choice; found-by-ddim-40+40: the same edit by DDIM's 40 + 40 "
    "calls; published: t = 500 by DDIM's 40 + 40 calls, C = 1, its strength and latents from the search; real: images "
    "that have the attribute",
    "gain": "found less this method on the same images; 95% intervals of paired shares (Bonett and Price) and means",
    "difference": "root mean square difference to the originals, pixels in [-1, 1]; of none: the reconstruction error",
}


@dataclass(frozen=True)
class EditRow:
    """One method on one attribute. Gains are the found edit's over this one, on the same images."""

    model: str
    attribute: str
    method: str
    nfe: int
    images: int
    success: float
    success_low: float
    success_high: float
    identity: float
    identity_low: float
    identity_high: float
    identity_pixels: float
    identity_features: float
    balance: float
    metric: str
    frechet: float
    frechet_low: float | None
    frechet_high: float | None
    difference: float
    time: float | None
    latent: str
    strength_z: float
    strength_h: float
    inversion: str
    generation: str
    eta: float
    rescale: bool
    C: float
    standardise: bool
    examples: int
    accuracy_z: float | None
    accuracy_h: float | None
    judge_accuracy: float
    success_gain: float | None = None
    success_gain_low: float | None = None
    success_gain_high: float | None = None
    identity_gain: float | None = None
    identity_gain_low: float | None = None
    identity_gain_high: float | None = None


@dataclass(frozen=True)
class StepRow:
    """The found edit of one attribute, made at another step.

    `below_best` is what its balance lacks of the sweep's best, on the same images, which the best is chosen on too.
    """

    model: str
    attribute: str
    role: str
    time: float
    step: float
    images: int
    success: float
    success_low: float
    success_high: float
    identity: float
    identity_low: float
    identity_high: float
    balance: float
    below_best: float
    below_best_low: float
    below_best_high: float
    frechet: float
    frechet_low: float | None
    frechet_high: float | None
    accuracy_z: float | None
    accuracy_h: float | None
    radius_sampled: float | None
    radius_inverted: float | None


@dataclass(frozen=True, eq=False)
class AttributeResult:
    """What is told of one attribute."""

    rows: list[EditRow]
    steps: list[StepRow]
    pictures: Pictures


def run_attribute(
    root: Path,
    settings: EditSettings,
    execution: ExecutionSettings,
    cache: Path,
    sweep_images: int,
    with_published: bool,
    command: str,
    on_record: OnRecord | None = None,
) -> AttributeResult:
    """Search one attribute (or go on, or read what was found), compare, sweep over the steps.

    ConfigurationError where `root` holds a search with other settings.
    """
    study = EditStudy(root, settings, cache)
    # How many images the report has decides about nothing before it.
    free = {"report_images": settings.report_images}
    if study.exists and EditStudy.load(root, cache).settings.model_copy(update=free) != settings:
        raise ConfigurationError(
            f"{root} holds a search that was made with other options: give those, or choose another --out"
        )
    state = study.run(execution, on_record)
    study.publish(state, command)
    found = state.chosen()
    assert found is not None
    bench = make_bench(study.settings.subject, cache, execution.device)
    config = found.candidate.config
    stock = published(state) if with_published else None
    rows = _compared(study, state, bench, config, stock, execution, on_record)
    steps = _swept(study, bench, config, sweep_images, execution, on_record)
    return AttributeResult(rows, steps, growing(bench, config))


def _compared(
    study: EditStudy,
    state: EditState,
    bench: Bench,
    found: EditConfig,
    stock: EditConfig | None,
    execution: ExecutionSettings,
    on_record: OnRecord | None,
) -> list[EditRow]:
    methods = [
        (NONE, at_strength(found, 0.0)),
        (FOUND, found),
        (DDIM, twin(found)),
    ]
    if stock is not None:
        methods.append((STOCK, stock))
    records = study.measure(methods, state.report, execution, on_record)
    count = state.report.images
    own = outcomes(bench, count, found)
    rows = [
        _row(bench, name, c, record, {} if name in (NONE, FOUND) else _gains(own, outcomes(bench, count, c)))
        for (name, c), record in zip(methods, records, strict=True)
    ]
    if bench.subject.source == "text":
        return rows
    real = bench.real(state.report.images)
    distance = frechet(bench.extractor(real), bench.reference)
    judged = bench.judge.labels(real)
    right = float(torch.isin(judged, torch.tensor(bench.attribute.positive)).double().mean())
    empty: dict[str, Any] = {f.name: _EMPTY[str(f.type)] for f in fields(EditRow)}
    values: dict[str, Any] = {
        "model": bench.files.name,
        "attribute": bench.attribute.name,
        "method": REAL,
        "images": len(real),
        "success": right,
        "success_low": right,
        "success_high": right,
        "metric": bench.extractor.name,
        "frechet": distance.value,
        "frechet_low": distance.low,
        "frechet_high": distance.high,
        "judge_accuracy": bench.judge.accuracy,
    }
    return [*rows, EditRow(**empty | values)]


_EMPTY = {"str": "", "int": 0, "float": 0.0, "bool": False, "float | None": None}


def published(state: EditState) -> EditConfig | None:
    """The best balanced screened edit at the base's step by the published calls; None where none was screened."""
    base = state.settings.base
    best: tuple[float, EditConfig] | None = None
    for trial in state.trials.values():
        config, record = trial.candidate.config, trial.records.get(SCREEN)
        stock = (config.inversion, config.generation) == (PUBLISHED, PUBLISHED) and trial.candidate.origin == "seed"
        if record is None or record.status != "complete" or not stock or config.boundary != base.boundary:
            continue
        value = balance(record.metrics["success"], record.metrics["identity"])
        if best is None or value > best[0]:
            best = value, config
    return None if best is None else best[1]


def outcomes(bench: Bench, count: int, config: EditConfig) -> Outcomes:
    """What an edit did to each of the report's first images."""
    hits, identity = bench.outcomes("report", count, bench.edit("report", count, config))
    return Outcomes(hits, identity.both)


def _gains(found: Outcomes, other: Outcomes) -> dict[str, float]:
    apart = ahead(found, other)
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {
        f"{name}_gain{end}": getattr(getattr(apart, name), attribute)
        for name in ("success", "identity")
        for end, attribute in ends
    }


def _row(bench: Bench, method: str, config: EditConfig, record: EvaluationRecord, gains: dict[str, float]) -> EditRow:
    f = record.metrics
    return EditRow(
        bench.files.name,
        bench.attribute.name,
        method,
        int(f["nfe"]),
        int(f["images"]),
        f["success"],
        f["success_low"],
        f["success_high"],
        f["identity"],
        f["identity_low"],
        f["identity_high"],
        f["identity_pixels"],
        f["identity_features"],
        balance(f["success"], f["identity"]),
        bench.extractor.name,
        f["frechet"],
        f.get("frechet_low"),
        f.get("frechet_high"),
        f["difference"],
        bench.files.noise.time(config.step),
        config.latent,
        config.strength_z,
        config.strength_h,
        way_name(config.inversion),
        way_name(config.generation),
        config.eta,
        config.rescale,
        config.boundary.C,
        config.boundary.standardise,
        config.boundary.images,
        f.get("accuracy_z"),
        f.get("accuracy_h"),
        bench.judge.accuracy,
        **gains,
    )


def _swept(
    study: EditStudy,
    bench: Bench,
    found: EditConfig,
    images: int,
    execution: ExecutionSettings,
    on_record: OnRecord | None,
) -> list[StepRow]:
    """The found edit at every step of the grid, at the steps it is compared with, and at those the criteria choose."""
    noise = bench.files.noise
    radii: dict[float, Radius] = {}
    roles: list[tuple[str, float]] = [(FOUND, found.step)]
    if bench.subject.source == "images":
        _, looked = found_step(bench)
        radii = {r.step: r for r in looked}
        roles += [(criterion, critical_step(looked, criterion).step) for criterion in CRITERIA]
    last = noise.time(noise.lambda_start)
    roles += [(f"t={time:g}", noise.lambda_at(time)) for time in COMPARED_TIMES if time < last]
    roles += [("T", noise.lambda_start), (READABLE, _readable(bench, found))]
    roles += [(SWEEP, step) for step in sorted(step_grid(noise), reverse=True)]
    configs = [(role, found.model_copy(update={"step": step})) for role, step in roles]
    configs.append((NONE, at_strength(found, 0.0)))
    rung = Rung(REPORT, "edit", images, study.settings.subject.seed)
    records = study.measure(configs, rung, execution, on_record)
    found_at = [outcomes(bench, images, config) for _, config in configs]
    best = max((o for o, (role, _) in zip(found_at, configs, strict=True) if role == SWEEP), key=lambda o: o.balance)
    rows = []
    for (role, config), record, outcome in zip(configs, records, found_at, strict=True):
        f, at, gap = record.metrics, radii.get(config.step), ahead(best, outcome).balance
        rows.append(
            StepRow(
                bench.files.name,
                bench.attribute.name,
                role,
                noise.time(config.step),
                config.step,
                int(f["images"]),
                f["success"],
                f["success_low"],
                f["success_high"],
                f["identity"],
                f["identity_low"],
                f["identity_high"],
                outcome.balance,
                gap.value,
                gap.low,
                gap.high,
                f["frechet"],
                f.get("frechet_low"),
                f.get("frechet_high"),
                f.get("accuracy_z"),
                f.get("accuracy_h"),
                None if at is None else at.sampled,
                None if at is None else at.inverted,
            )
        )
    return rows


def _readable(bench: Bench, found: EditConfig) -> float:
    """The step that held-out accuracy chooses, of the boundary in z, or in h where z is not moved."""
    latent = "z" if found.uses_z else "h"
    facts = [bench.boundary(latent, step, found.boundary).facts for step in step_grid(bench.files.noise)]
    return readable_step({f.step: f.accuracy for f in facts}, facts[0].held_out)


def edits_csv(results: Sequence[AttributeResult], command: str, seed: int) -> str:
    """The comparison as CSV under lines that say how it was made."""
    return results_csv([row for r in results for row in r.rows], command, {"search and report": seed}, NOTES)


def steps_csv(results: Sequence[AttributeResult], command: str, seed: int) -> str:
    """The sweep as CSV under lines that say how it was made."""
    notes = {
        "success": NOTES["success"],
        "identity": NOTES["identity"],
        "roles": "found: the search's step; shell, peak, gap: steps that the radius criteria choose; readable: the "
        "noisiest step at which held-out accuracy is within one standard error of its best; sweep: the grid that "
        "below_best refers to; none: the found step at strength 0",
        "below_best": "what the balance lacks of the sweep's best on the same images, which the best is chosen on too; "
        "the jackknife's 95% interval",
        "radius": "mean norm over sqrt(D (alpha^2 + sigma^2)) of latents of samples and of inverted images",
    }
    return results_csv([row for r in results for row in r.steps], command, {"search and report": seed}, notes)
