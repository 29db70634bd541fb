"""A grid on disk: what of it is done, what is not, and doing it. Killed at any moment, it goes on from its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import EvaluationError
from fewstep.pipeline.campaign import Campaign, register
from fewstep.pipeline.campaign import Cell as CampaignCell
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.grid.cells import Cell, Group, cells_of
from fewstep.pipeline.grid.choose import Shard, chosen
from fewstep.pipeline.grid.settings import GridSettings
from fewstep.pipeline.known import Known
from fewstep.pipeline.loop import OnRecord
from fewstep.search_spaces.point import content_key
from fewstep.storage.lease import Lease
from fewstep.storage.records import EvaluationRecord
from fewstep.storage.store import Store
from fewstep.tasks.faults import may_succeed

SHARDS, LOCK = "shards", "grid.lock"


@dataclass(frozen=True)
class Planned:
    """A cell with the key of its evaluation, and the place of its group."""

    cell: Cell
    key: str
    group: int


class Grid:
    """The cells that `only` and `shard` select of a grid, in `root`. Opening it writes nothing.

    What one of them needs that cannot be is refused, see `cells_of` and `chosen`.
    """

    def __init__(
        self,
        settings: GridSettings,
        root: Path,
        execution: ExecutionSettings,
        only: Sequence[str] = (),
        shard: Shard | None = None,
    ) -> None:
        self.settings, self.folder, self.shard = settings, root, shard
        self.root = root / SHARDS / shard.folder if shard else root
        # Features and references, which the subjects of a model share.
        self._loaded: dict[tuple[str, ...], Any] = {}
        every = cells_of(settings, self._loaded)
        self.left_out = every.left_out
        self._selected = {cell.values for cell in chosen(every, only)}
        self.groups = every.groups if shard else chosen(every, only).groups
        others = [folder for folder in self._shards() if folder != self.root]
        others += [root] if shard and (root / "tables" / "evaluations").is_dir() else []
        self.execution = execution.model_copy(update={"known": (*execution.known, *map(str, others))})
        self.known = Known(Store(self.root), settings.study, self.execution.known)
        # Why a subject's cells were given up, by the place of its group.
        self.stopped: dict[int, str] = {}

    def _shards(self) -> list[Path]:
        folders = sorted((self.folder / SHARDS).glob("*-of-*"))
        return [folder for folder in folders if (folder / "tables" / "evaluations").is_dir()]

    # -- what it is -----------------------------------------------------------------------------------

    def campaign(self, group: Group, on_record: OnRecord | None = None) -> Campaign:
        """What evaluates a group's cells. Networks that are calibrated are one folder's, whatever the shard."""
        cache = str((self.folder / "quantized").resolve()) if group.subject.calibration else ""
        study, known = self.settings.study, self.known
        return Campaign(
            group.subject, self.root, self.execution, study, group.teacher, cache, on_record, elsewhere=known
        )

    @cached_property
    def evaluators(self) -> list[Evaluator]:
        """One a group."""
        return [self.campaign(group).evaluator() for group in self.groups]

    @cached_property
    def plan(self) -> list[Planned]:
        """The cells that are asked for. Several may share an evaluation, such as presets that coincide."""
        every = [
            Planned(cell, evaluator.key(cell.point, cell.rung), i)
            for i, (group, evaluator) in enumerate(zip(self.groups, self.evaluators, strict=True))
            for cell in group.cells
        ]
        ours = self.shard.keys({p.key: p.cell.point.nfe for p in every}) if self.shard else None
        return [p for p in every if p.cell.values in self._selected and (ours is None or p.key in ours)]

    def history(self) -> list[EvaluationRecord]:
        """What the folder holds of the grid, also of cells that it no longer has."""
        return Store(self.root).evaluations.records({"study": self.settings.study})

    def records(self) -> dict[str, EvaluationRecord]:
        """What is known of the planned evaluations, by key; failures too, where nothing better is."""
        own = {r.key: r for r in self.history()}
        keys = list(dict.fromkeys(planned.key for planned in self.plan))
        undone = [key for key in keys if key not in own or own[key].status != "complete"]
        found = own | self.known.records(undone)
        return {key: found[key] for key in keys if key in found}

    # -- doing it -------------------------------------------------------------------------------------

    def run(self, retry: bool = False, on_record: OnRecord | None = None, compute: bool = True) -> None:
        """Evaluate what is open, with `retry` also what failed; without `compute` only take what is known elsewhere.

        A subject whose cells fail one after the other is given up, and told in `stopped`; where the machine fails, that
        is raised. LeaseError while somebody else works on the same cells.
        """
        with self._alone():
            self._register()
            for i, group in enumerate(self.groups):
                self.campaign(group).take([_asked(p.cell) for p in self.plan if p.group == i])
            if not compute:
                return
            known = {key: record.status for key, record in self.records().items()}
            done = {key for key, status in known.items() if status == "complete" or not retry}
            for i, group in enumerate(self.groups):
                todo = [planned.cell for planned in self.plan if planned.group == i and planned.key not in done]
                if todo:
                    self._evaluate(i, group, todo, on_record)

    def _evaluate(self, place: int, group: Group, todo: Sequence[Cell], on_record: OnRecord | None) -> None:
        last: list[EvaluationRecord] = []

        def note(record: EvaluationRecord) -> None:
            last[:] = [record]
            if on_record:
                on_record(record)

        try:
            self.campaign(group, note).run([_asked(cell) for cell in todo])
        except EvaluationError as error:
            if last and may_succeed(last[0].error):
                raise
            self.stopped[place] = str(error)

    def _register(self) -> None:
        hashes: dict[str, str] = {}
        for group, evaluator in zip(self.groups, self.evaluators, strict=True):
            hashes |= self.campaign(group).check(evaluator, [cell.rung.metric for cell in group.cells])
        models = list(dict.fromkeys(evaluator.files.hash for evaluator in self.evaluators))
        model = models[0] if len(models) == 1 else content_key(models=models)[:16]
        with Lease(self.root):
            register(self.root, self.settings.study, self.settings, ", ".join(self.settings.models), model, hashes)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """LeaseError while the whole grid is being made beside a shard, or shards beside it or of another cut."""
        beside = [folder for folder in (self.folder / SHARDS).glob("*-of-*") if folder != self.root]
        with ExitStack() as held:
            held.enter_context(Lease(self.root, LOCK))
            for folder in beside:
                if self.shard is None:
                    held.enter_context(Lease(folder, LOCK))
                elif not folder.name.endswith(f"-of-{self.shard.count}"):
                    _look(folder)
            if self.shard is not None:
                _look(self.folder)
            yield


def _look(folder: Path) -> None:
    """LeaseError where somebody makes the grid in a folder."""
    with Lease(folder, LOCK):
        pass


def _asked(cell: Cell) -> CampaignCell:
    return cell.point, cell.origin, cell.rung
