"""Edits of several attributes side by side: what a search finds, what it is compared with, and every edit step.

Each attribute has a search of its own beneath the root. Figures are of the report's images, which no boundary and no
search has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from benchmarks.tables.edit_pairs import Outcomes, ahead
from benchmarks.tables.edit_search import EditSearch
from benchmarks.tables.engine import Engine, EvaluationRecord, Picture, Row, Sheet, Table
from fewstep.pipeline.editing.boundaries import at_strength, found_step, step_grid, strength_of
from fewstep.pipeline.editing.pictures import Pictures, draw
from fewstep.pipeline.problems.edits import way_name
from fewstep.pipeline.reports.pictures import COLUMNS
from fewstep.pipeline.stages.neighbours import twin
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.schedule import load_schedule
from fewstep.tasks.editing.bench import Bench
from fewstep.tasks.editing.measures import balance, frechet
from fewstep.tasks.editing.path import way_of
from fewstep.tasks.editing.radius import CRITERIA, Radius, critical_step, readable_step
from fewstep.tasks.editing.subject import TRAIN, EditSubject

NONE, FOUND, DDIM, STOCK, REAL = "none", "found", "found-by-ddim-40+40", "published", "real"
SWEEP, READABLE = "sweep", "readable"
COMPARED_TIMES = (300.0, 700.0)
PIXELS = 56
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
STEP_NOTES = {
    "success": NOTES["success"],
    "identity": NOTES["identity"],
    "roles": "found: the search's step; shell, peak, gap: steps that the radius criteria choose; readable: the "
    "noisiest step at which held-out accuracy is within one standard error of its best; sweep: the grid that "
    "below_best refers to; none: the found step at strength 0",
    "below_best": "what the balance lacks of the sweep's best on the same images, which the best is chosen on too; "
    "the jackknife's 95% interval",
    "radius": "mean norm over sqrt(D (alpha^2 + sigma^2)) of latents of samples and of inverted images",
}
SHARES = ("success", "success_low", "success_high", "identity", "identity_low", "identity_high")
FRECHET = ("frechet", "frechet_low", "frechet_high")
# What a row of real images has no figures for.
UNKNOWN = ("time", "accuracy_z", "accuracy_h")


class Edits(Table):
    """Attributes are names or classes as A/B, several of a side with +; `most_calls` bounds the choice, 0: no bound."""

    study: ClassVar[str] = "edits"

    model: str
    data: str
    attributes: tuple[str, ...] = Field(min_length=1)
    schedules: tuple[str, ...] = ()
    steps: PositiveInt = 12
    sampler: str = "tpe"
    budget: PositiveInt = 60_000
    most_calls: NonNegativeInt = 40
    screen_images: int = Field(40, ge=2)
    final_images: int = Field(60, ge=2)
    report_images: int = Field(60, ge=2)
    sweep_images: int = Field(60, ge=2)
    examples: int = Field(50, ge=8)
    fit_way: str = "dpm-solver-2m/uniform-t@10"
    judge: str = TRAIN
    judge_steps: PositiveInt = 2500

    def make(self, engine: Engine) -> Iterator[Sheet | Picture]:
        """Search each attribute, compare, sweep over the steps."""
        rows, steps, pictures, seeds = list[Row](), list[Row](), Pictures(), {"search and report": self.seed}
        for name in (attribute.replace("+", ",") for attribute in self.attributes):
            subject = EditSubject.build(
                model=self.model, data=self.data, attribute=name, fit_way=way_of(self.fit_way), examples=self.examples,
                judge=self.judge, judge_steps=self.judge_steps, seed=self.seed,
            )  # fmt: skip
            search = EditSearch.run(
                engine.root / name.replace("/", "-vs-").replace(",", "+"), subject, self.steps,
                [load_schedule(path) for path in self.schedules], engine.command, engine.execution, engine.told,
                sampler=self.sampler, budget=self.budget, most_calls=self.most_calls, screen_images=self.screen_images,
                final_images=self.final_images, report_images=self.report_images,
            )  # fmt: skip
            rows += compared(search, self.report_images)
            steps += swept(search, self.sweep_images)
            pictures += growing(search.bench, search.found)
            yield Sheet(f"{self.data}_edits", rows, seeds, NOTES)
            yield Sheet(f"{self.data}_critical_step", steps, seeds, STEP_NOTES)
        yield Picture(f"{self.data}_edits", lambda path: draw(pictures, path, PIXELS))


def compared(search: EditSearch, images: int) -> list[Row]:
    """A row a method. Gains are the found edit's over this one, on the same images."""
    found, bench = search.found, search.bench
    methods = [(NONE, at_strength(found, 0.0)), (FOUND, found), (DDIM, twin(found))]
    if search.published is not None:
        methods.append((STOCK, search.published))
    own, rows = outcomes(bench, images, found), list[Row]()
    for (name, config), record in zip(methods, search.measured(methods, images), strict=True):
        other = None if name in (NONE, FOUND) else outcomes(bench, images, config)
        rows.append(_row(bench, name, config, record) | _gains(own, other))
    real = bench.real(images)
    distance = frechet(bench.extractor(real), bench.reference)
    right = float(bench.judge.has(real).mean())
    empty = {name: None if value is None or name in UNKNOWN else type(value)() for name, value in rows[0].items()}
    known = {name: rows[0][name] for name in ("model", "attribute", "metric", "judge_accuracy")}
    shares = {"success": right, "success_low": right, "success_high": right}
    ends = dict(zip(FRECHET, (distance.value, distance.low, distance.high), strict=True))
    return [*rows, empty | known | {"method": REAL, "images": len(real)} | shares | ends]


def _row(bench: Bench, method: str, config: EditConfig, record: EvaluationRecord) -> Row:
    f = record.metrics
    return {
        "model": bench.files.name,
        "attribute": bench.attribute.name,
        "method": method,
        "nfe": int(f["nfe"]),
        "images": int(f["images"]),
        **{name: f[name] for name in (*SHARES, "identity_pixels", "identity_features")},
        "balance": balance(f["success"], f["identity"]),
        "metric": bench.extractor.name,
        **{name: f.get(name) for name in FRECHET},
        "difference": f["difference"],
        "time": bench.files.noise.time(config.step),
        "latent": config.latent,
        "strength_z": config.strength_z,
        "strength_h": config.strength_h,
        "inversion": way_name(config.inversion),
        "generation": way_name(config.generation),
        "eta": config.eta,
        "rescale": config.rescale,
        "C": config.boundary.C,
        "standardise": config.boundary.standardise,
        "examples": config.boundary.images,
        "accuracy_z": f.get("accuracy_z"),
        "accuracy_h": f.get("accuracy_h"),
        "judge_accuracy": bench.judge.accuracy,
    }


def _gains(found: Outcomes, other: Outcomes | None) -> Row:
    gains: Row = {}
    for name in ("success", "identity"):
        apart = None if other is None else getattr(ahead(found, other), name)
        for end, attribute in (("", "value"), ("_low", "low"), ("_high", "high")):
            gains[f"{name}_gain{end}"] = None if apart is None else getattr(apart, attribute)
    return gains


def swept(search: EditSearch, images: int) -> list[Row]:
    """The found edit at every step of the grid, at the steps it is compared with, and at those the criteria choose.

    `below_best` is what its balance lacks of the sweep's best, on the same images, which the best is chosen on too.
    """
    found, bench = search.found, search.bench
    noise, (_, looked) = bench.files.noise, found_step(bench)
    radii: dict[float, Radius] = {r.step: r for r in looked}
    roles = [(FOUND, found.step), *((criterion, critical_step(looked, criterion).step) for criterion in CRITERIA)]
    last = noise.time(noise.lambda_start)
    roles += [(f"t={time:g}", noise.lambda_at(time)) for time in COMPARED_TIMES if time < last]
    roles += [("T", noise.lambda_start), (READABLE, _readable(bench, found))]
    roles += [(SWEEP, step) for step in sorted(step_grid(noise), reverse=True)]
    configs = [(role, found.model_copy(update={"step": step})) for role, step in roles]
    configs.append((NONE, at_strength(found, 0.0)))
    found_at = [outcomes(bench, images, config) for _, config in configs]
    best = max((o for o, (role, _) in zip(found_at, configs, strict=True) if role == SWEEP), key=lambda o: o.balance)
    rows = []
    for (role, config), record, outcome in zip(configs, search.measured(configs, images), found_at, strict=True):
        f, at, gap = record.metrics, radii.get(config.step), ahead(best, outcome).balance
        rows.append(
            {
                "model": bench.files.name,
                "attribute": bench.attribute.name,
                "role": role,
                "time": noise.time(config.step),
                "step": config.step,
                "images": int(f["images"]),
                **{name: f[name] for name in SHARES},
                "balance": outcome.balance,
                "below_best": gap.value,
                "below_best_low": gap.low,
                "below_best_high": gap.high,
                **{name: f.get(name) for name in (*FRECHET, "accuracy_z", "accuracy_h")},
                "radius_sampled": None if at is None else at.sampled,
                "radius_inverted": None if at is None else at.inverted,
            }
        )
    return rows


def _readable(bench: Bench, found: EditConfig) -> float:
    """The step that held-out accuracy chooses, of the boundary in z, or in h where z is not moved."""
    latent = "z" if found.uses_z else "h"
    facts = [bench.boundary(latent, step, found.boundary).facts for step in step_grid(bench.files.noise)]
    return readable_step({f.step: f.accuracy for f in facts}, facts[0].held_out)


def outcomes(bench: Bench, count: int, config: EditConfig) -> Outcomes:
    """What an edit did to each of the report's first images."""
    hits, identity = bench.outcomes("report", count, bench.edit("report", count, config))
    return Outcomes(hits, identity.both)


def growing(bench: Bench, config: EditConfig) -> Pictures:
    """Originals under the attribute's name, and the found edit at half, all and one and a half of its strength."""
    own, rows = strength_of(config), [(bench.attribute.name, bench.originals("report", COLUMNS).images)]
    for factor in (0.5, 1.0, 1.5):
        found = " (found)" if factor == 1 else ""
        moved = bench.edit("report", COLUMNS, at_strength(config, factor * own))
        rows.append((f"{factor * own:.1f} sd{found}", moved))
    return rows


DIGITS = Edits(model="digits-ddpm", data="digits", attributes=("nine", "eight", "seven", "six", "zero"))
FASHION = Edits(
    model="fashion-ddpm",
    data="fashion",
    attributes=("long-sleeves", "boot", "coat", "dress", "bag"),
    schedules=("docs/results/schedules/fashion_nfe8.json", "docs/results/schedules/fashion_nfe5.json"),
    judge="fashion",
    examples=400,
    budget=70_000,
    screen_images=48,
    final_images=200,
    report_images=500,
    sweep_images=200,
)
