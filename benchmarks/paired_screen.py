"""How paired looks order stock schedules, against the Frechet distance of as few images.

    python -m benchmarks.paired_screen [--models digits-ddpm digits-edm] [--nfe 4 5 8] [--few 32 64 250]
        [--many 250 2000]

Every preset on every grid, without and with an analytic first call, but for those that GROUP images show to be bad.
What both should order them as is the Frechet distance on IMAGES other images, among those within WITHIN times the best
one's. A figure is the mean of Kendall's tau over BLOCKS draws of the few images; `loss` is what choosing by them costs:
the distance of what seems best over that of what is. The paired guess is controlled by the search's own control on as
many images as --many says. One JSON line a model, NFE and numbers of images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks._line import emit
from fewstep.errors import EvaluationError
from fewstep.pipeline.problems.schedules import analytic_first_steps
from fewstep.pipeline.stages.preset_order import is_control, of_schedule
from fewstep.search_spaces.point import as_point
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.metrics.metric import Setting
from fewstep.tasks.metrics.moments import Array, Moments
from fewstep.tasks.metrics.paired import PairedFrechet
from fewstep.tasks.models.conditions import BALANCED, NO_LABEL, Conditions
from fewstep.tasks.models.files import ModelFiles, find_model
from fewstep.tasks.sampling.grids import all_presets
from fewstep.tasks.work import FEATURES, GROUP, Part, Subject, WorkerSettings
from fewstep.tasks.worker import Worker

IMAGES, SEED, BLOCKS, WITHIN = 2000, 5, 6, 3.0
# The few images are among the first so many.
SEEN = 250


def stock(files: ModelFiles, nfe: int) -> tuple[dict[str, SolverSchedule], str]:
    """Every preset at a number of calls by hash, and the hash of the search's control."""
    tables = {"preset:": all_presets(files.noise, nfe), "analytic:": analytic_first_steps(files.noise, nfe)}
    known = [of_schedule(k + name, s, as_point(s)) for k, table in tables.items() for name, s in table.items()]
    schedules = {s.hash: s for table in tables.values() for s in table.values()}
    control = next(k for k in known if is_control(k))
    return schedules, next(s.hash for s in schedules.values() if as_point(s).hash == control.point.hash)


def measured(worker: Worker, schedules: Mapping[str, SolverSchedule], images: range) -> dict[str, Array]:
    """Features (N, D) of some images by hash, of those that do not explode."""
    found: dict[str, Array] = {}
    for name, schedule in schedules.items():
        try:
            starts = range(images.start, images.stop, GROUP)
            made = [worker.extractor(worker.render(as_point(schedule), SEED, start, GROUP)) for start in starts]
        except EvaluationError:
            continue
        features = np.concatenate(made).astype(np.float64)
        if np.isfinite(features).all():
            found[name] = features
    return found


def promising(metric: PairedFrechet, worker: Worker, schedules: dict[str, SolverSchedule], control: str) -> set[str]:
    """Those that may be within WITHIN times the best, by GROUP images; the control among them."""
    looked = measured(worker, schedules, range(GROUP))
    values = {name: metric.frechet.distance(Moments.of(features)) for name, features in looked.items()}
    return {name for name, value in values.items() if value < WITHIN * min(values.values())} | {control}


@dataclass(frozen=True)
class Stock:
    """Features of stock schedules by hash, the hash of the control, and what both are scored by.

    The last IMAGES are those that neither sees.
    """

    metric: PairedFrechet
    features: Mapping[str, Array]
    control: str

    @cached_property
    def truth(self) -> dict[str, float]:
        """The distance on images that neither sees."""
        return {name: self._alone(features[-IMAGES:]) for name, features in self.features.items()}

    def _alone(self, features: Array) -> float:
        return self.metric.frechet.distance(Moments.of(features))

    def alone(self, name: str, images: slice) -> float:
        """The Frechet distance of a few images."""
        return self._alone(self.features[name][images])

    def guessed(self, name: str, images: slice, many: int) -> float:
        """The paired guess from the same, with a control on `many`."""
        whole = Part(0, many, Moments.of(self.features[self.control][:many]))
        few = [Part(0, many, values={FEATURES: self.features[n][images]}) for n in (self.control, name)]
        return self.metric.score([whole, *few], {}).value

    def order(self, values: Callable[[str, slice], float], few: int) -> tuple[float, float]:
        """Mean over draws of tau among the good ones, and of what the choice costs."""
        best = min(self.truth.values())
        good = [name for name, value in self.truth.items() if value < WITHIN * best]
        taus, losses = [], []
        # Of the same images, whatever the control has.
        for start in np.linspace(0, SEEN - few, BLOCKS if few < SEEN else 1).astype(int):
            seen = {name: values(name, slice(start, start + few)) for name in self.truth}
            taus.append(float(kendalltau([seen[n] for n in good], [self.truth[n] for n in good]).statistic))
            losses.append(self.truth[min(seen, key=lambda name: seen[name])] / best)
        return float(np.mean(taus)), float(np.mean(losses))


def main() -> None:
    """Print a line for each model, number of calls and number of images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["digits-ddpm", "digits-edm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 8])
    parser.add_argument("--few", nargs="+", type=int, default=[32, 64, 250])
    parser.add_argument("--many", nargs="+", type=int, default=[250, 2000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        files = find_model(model)
        subject = Subject(model, conditions=Conditions(labels=NO_LABEL if files.classes is None else BALANCED))
        worker, metric = Worker(WorkerSettings(subject, threads=1)), PairedFrechet(Setting(subject, files))
        for nfe in options.nfe:
            schedules, control = stock(files, nfe)
            names = promising(metric, worker, schedules, control)
            whole = range(max(options.many) + IMAGES)
            known = Stock(metric, measured(worker, {n: schedules[n] for n in sorted(names)}, whole), control)
            asked = {"model": model, "nfe": nfe, "schedules": len(known.truth), "dim": worker.extractor.dim}
            asked |= {"seed": SEED, "images": IMAGES, "draws": BLOCKS}
            for few in options.few:
                theirs, lost = known.order(known.alone, few)
                for many in options.many:
                    ours, loss = known.order(partial(known.guessed, many=many), few)
                    told = {"few": few, "control_images": many, "loss": loss, "peer_loss": lost, **asked}
                    emit("paired screen", "Frechet distance of as few images", "Kendall's tau", ours, theirs, told)


if __name__ == "__main__":
    main()
