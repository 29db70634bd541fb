"""Sample elites, their children and the derivatives of their moments, once: one Parquet file an elite, then one of all.

    python -m benchmarks.siblings.measure --out runs/siblings [--models digits-ddpm digits-edm] [--nfe 3 4 5 8]

What is there is not measured again. `truth` and `judge` are Frechet distances on images that no ranking saw, by the
model's own classifier and by the bundled judge: the elite's on ELITE_IMAGES, moved by what a child changes on
TRUTH_IMAGES of the same noises. Rows are siblings (ranked by everything), the brood's picks (the five that a ranking
takes of many), and the trials of the search that found the elites, which a learned ranking is trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.siblings.rankings import LinearFeatures
from benchmarks.siblings.relatives import Relatives
from fewstep.errors import EvaluationError, ScheduleError
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.proposers.s3 import MUTATION_RATES
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.pipeline.trial import candidate_of
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule.genome import Genome, encode, to_genome, to_schedule
from fewstep.search_spaces.schedule.space import ScheduleSpace
from fewstep.tasks.metrics.metric import Setting, make_metric
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.conditions import BALANCED, NO_LABEL, Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.work import FEATURES, Part, Subject, WorkerSettings
from fewstep.tasks.worker import Worker

Array = npt.NDArray[np.float64]
SEARCH, FRESH = 0, 77
SIBLINGS, BROOD, PICKED, STAGED = 60, 1000, 5, 40
# Rankings whose first STAGED are screened.
STAGES = ("lin_125", "lin_250", "damped_250")
FEW = (16, 32, 64)
# Images that derivatives are measured on: all of them, or the first few.
DERIVED = (125, 250)
ELITE_IMAGES, TRUTH_IMAGES, CONTROL_IMAGES = 2000, 250, 1000
# Children whose moments correct the model, and on how many images.
TOLD, TOLD_IMAGES = 6, 250
CALLS = 10_000
LEAST = 1e-6
GROUP = 250


class Sampled:
    """Features of schedules on one model, by its own classifier and by the judge, and distances guessed from them."""

    def __init__(self, model: str) -> None:
        self.files = find_model(model)
        conditions = Conditions(labels=NO_LABEL if self.files.classes is None else BALANCED)
        self.subject = Subject(model, conditions=conditions)
        self.worker = Worker(WorkerSettings(self.subject, threads=1))
        setting = Setting(self.subject, self.files)
        self.metrics = {"truth": make_metric("paired", setting), "judge": make_metric("paired:judge", setting)}

    def features(self, genome: Genome, seed: int, count: int) -> dict[str, Array]:
        """(count, D) by name of the metric; EvaluationError where its steps explode."""
        made: dict[str, list[Array]] = {name: [] for name in self.metrics}
        for start in range(0, count, GROUP):
            images = self.worker.render(as_point(to_schedule(genome)), seed, start, min(GROUP, count - start))
            for name, metric in self.metrics.items():
                made[name].append(np.asarray(metric.setting.extractor(images), np.float64))
        found = {name: np.concatenate(parts) for name, parts in made.items()}
        if not all(np.isfinite(f).all() for f in found.values()):
            raise EvaluationError("features are not finite")
        return found

    def guess(self, name: str, control: Array, few: Array) -> float:
        """The distance of a control's features, moved by what `few`, a child's, change on the first of its images."""
        parts = [Part(0, len(few), values={FEATURES: f}) for f in (control[: len(few)], few)]
        return self.metrics[name].score([Part(0, len(control), Moments.of(control)), *parts], {}).value

    def exact(self, name: str, features: Array) -> float:
        """The distance of features as they are."""
        return self.guess(name, features, features[: FEW[0]])


def searched(out: Path, model: str, nfe: int) -> Study:
    """A short default search without tuning."""
    root = out / f"search-{model}-{nfe}"
    settings = SearchSettings.build(
        study="siblings", model=model, nfes=(nfe,), budget=CALLS * nfe, refine=0.0, seed=SEARCH, frechet_images=1000
    )
    study = Study(root, settings)
    study.find(ExecutionSettings(executor="in-process"))
    return study


def trials_of(study: Study) -> list[tuple[Genome, float | None, float | None]]:
    """Members of the space that were screened, with their values at the screen and at the main rung."""
    ladder = study.problem.ladder
    values: dict[int, dict[str, float]] = {}
    genomes: dict[int, Genome] = {}
    for record in study.records():
        if record.rung not in (ladder.screen.name, ladder.main.name) or record.value is None:
            continue
        try:
            genomes[record.trial] = to_genome(candidate_of(record).schedule)
        except ScheduleError:
            continue
        values.setdefault(record.trial, {})[record.rung] = record.value
    return [(genomes[n], v.get(ladder.screen.name), v.get(ladder.main.name)) for n, v in sorted(values.items())]


def children(space: ScheduleSpace, elite: Genome, mates: Sequence[Genome], relatives: Relatives) -> Iterator[Any]:
    """The elite's children, without end, each once, with the corrections that make them of it; None of the others.

    Those that sample as the elite does are left out.
    """
    rng, seen = Random(f"{elite}"), {elite}
    while True:
        mixed = space.cross(elite, rng.choice(mates), rng) if rng.random() < 0.4 else elite
        child = space.mutate(mixed, rng, rng.choice(MUTATION_RATES))
        if child in seen:
            continue
        seen.add(child)
        try:
            theta = relatives.corrections(to_schedule(child))
        except ScheduleError:
            yield None
            continue
        if np.abs(theta).max() > LEAST:
            yield child, theta


def elite_rows(sampled: Sampled, study: Study, nfe: int, number: int) -> list[dict[str, Any]]:
    """All that is measured of one elite."""
    trials = trials_of(study)
    judged = sorted((t for t in trials if t[2] is not None), key=lambda t: t[2] or 0.0)
    mates = [genome for genome, _, _ in judged[:15]]
    elite, noise = mates[number], sampled.files.noise
    space = ScheduleSpace(noise.lambda_start, noise.lambda_end, (nfe,))
    relatives = Relatives(to_schedule(elite), noise, sampled.files.prediction_type)
    images = DERIVED[-1]
    linear = LinearFeatures(sampled, to_schedule(elite), images, SEARCH)
    search, fresh = sampled.features(elite, SEARCH, CONTROL_IMAGES), sampled.features(elite, FRESH, ELITE_IMAGES)
    drawn, made, unreached = children(space, elite, mates, relatives), [], 0
    while len(made) < SIBLINGS + BROOD:
        if (child := next(drawn)) is None:
            unreached += 1
        else:
            made.append(child)
    common = {
        "model": sampled.files.name,
        "nfe": nfe,
        "elite": number,
        "derived": images,
        "calls": linear.calls,
        "unreached": unreached / (unreached + len(made)),
    }
    truth = {name: sampled.exact(name, fresh[name]) for name in sampled.metrics}
    rows: list[dict[str, Any]] = [{**common, "kind": "elite", **truth, "lin": linear.value}]
    rows += [
        {**common, "kind": "trial", "features": encode(g).ravel().tolist(), "screen": a, "main": b}
        for g, a, b in (trials if number == 0 else [])
    ]

    def true(genome: Genome) -> dict[str, float]:
        try:
            few = sampled.features(genome, FRESH, TRUTH_IMAGES)
            return {name: sampled.guess(name, fresh[name], few[name]) for name in few}
        except EvaluationError:
            return {"truth": 1e3, "judge": 1e3}

    def looked(genome: Genome, few: Sequence[int]) -> tuple[dict[str, float], Array | None]:
        try:
            own = sampled.features(genome, SEARCH, max(few))["truth"]
            return {f"paired_{n}": sampled.guess("truth", search["truth"], own[:n]) for n in few}, own
        except EvaluationError:
            return {f"paired_{n}": 1e3 for n in few}, None

    siblings, brood = made[:SIBLINGS], made[SIBLINGS:]
    thetas = np.stack([theta for _, theta in siblings])
    predicted = linear.predictions(thetas, [n for n in DERIVED if n <= images])
    told = np.argsort(predicted[f"lin_{images}"])[:TOLD]
    moved = {int(i): sampled.features(siblings[i][0], SEARCH, TOLD_IMAGES)["truth"] for i in told}
    predicted["broyden"] = linear.corrected(thetas, moved)
    for i, (genome, theta) in enumerate(siblings):
        paired, own = looked(genome, FEW)
        both = {} if own is None else {f"hybrid_{n}": linear.hybrid(theta, own[:n], 250) for n in (16, 32)}
        row = {"kind": "sibling", "number": i, "told": i in moved, "features": encode(genome).ravel().tolist()}
        rows.append(
            {**common, **row, **true(genome), **paired, **both, **{k: float(v[i]) for k, v in predicted.items()}}
        )
    rows += [{**common, "kind": "brood", **row} for row in picked(sampled, linear, brood, nfe, images, looked, true)]
    return rows


def picked(
    sampled: Sampled,
    linear: LinearFeatures,
    brood: Sequence[tuple[Genome, Array]],
    nfe: int,
    images: int,
    looked: Any,
    true: Any,
) -> list[dict[str, Any]]:
    """Of a large brood the five that each way takes, ranked at no call or screened for as many as that took."""
    thetas = np.stack([theta for _, theta in brood])
    ranked, each = linear.predictions(thetas, DERIVED), FEW[1] * nfe
    payable = {n: min(len(brood), int(linear.calls * n / images) // each) for n in DERIVED}
    stages = {name: [int(i) for i in np.argsort(ranked[name])[:STAGED]] for name in STAGES}
    screened: dict[int, tuple[float, Array | None]] = {}
    paired = [payable[n] + STAGED for n in DERIVED]
    for i in dict.fromkeys([*range(max(paired)), *(i for some in stages.values() for i in some)]):
        values, own = looked(brood[i][0], (FEW[1],))
        screened[i] = values[f"paired_{FEW[1]}"], own
    ways: dict[str, Sequence[int]] = {
        name: [int(i) for i in np.argsort(values)[:PICKED]]
        for name, values in ranked.items()
        if name.startswith(("lin_", "quad_", "damped_", "bold_"))
    }
    for n, count in payable.items():
        ways[f"paired for lin_{n}"] = sorted(range(count), key=lambda i: screened[i][0])[:PICKED]
        ways[f"paired for staged_{n}"] = sorted(range(count + STAGED), key=lambda i: screened[i][0])[:PICKED]
    for name, staged in stages.items():
        ways[f"staged {name}"] = sorted(staged, key=lambda i: screened[i][0])[:PICKED]
    hybrids = {
        i: linear.hybrid(brood[i][1], own, 250) for i in stages["lin_250"] if (own := screened[i][1]) is not None
    }
    ways["staged hybrid_250"] = sorted(hybrids, key=lambda i: hybrids[i])[:PICKED]
    takers: dict[int, list[str]] = {}
    for name, taken in ways.items():
        for i in taken:
            takers.setdefault(i, []).append(name)
    return [{"number": i, "takers": names, **true(brood[i][0])} for i, names in sorted(takers.items())]


def main() -> None:
    """Measure what is missing, and write all in one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/siblings"))
    parser.add_argument("--models", nargs="+", default=["digits-ddpm", "digits-edm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 3, 8])
    parser.add_argument("--elites", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, Any]] = []
    for number in range(a.elites):
        for nfe in a.nfe:
            for model in a.models:
                path = a.out / f"{model}-{nfe}-{number}.parquet"
                if not path.is_file():
                    found = elite_rows(Sampled(model), searched(a.out, model, nfe), nfe, number)
                    aside = path.with_suffix(".part")
                    pq.write_table(_compact(pa.Table.from_pylist(_filled(found))), aside, compression="zstd")
                    aside.rename(path)
                rows += pq.read_table(path).to_pylist()
                pq.write_table(
                    _compact(pa.Table.from_pylist(_filled(rows))), a.out / "siblings.parquet", compression="zstd"
                )


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _compact(table: pa.Table) -> pa.Table:
    """Numbers in single precision."""
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_float64(kind):
            kind = pa.float32()
        elif pa.types.is_list(kind) and pa.types.is_float64(kind.value_type):
            kind = pa.list_(pa.float32())
        fields.append(pa.field(field.name, kind))
    return table.cast(pa.schema(fields))


if __name__ == "__main__":
    main()
