"""Evaluations that were made elsewhere, by other folders or by another study of the same one: taken, not made again.

The evaluation key says what would be computed, whoever asks for it, so that a value may be taken wherever it lies.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fewstep.errors import ConfigurationError, DamagedFileError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.trial import Work
from fewstep.storage.parts import Part
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Scanned


class Known:
    """Complete evaluations beneath `folders` (patterns), and of the other studies of `own`, by key.

    Read once, when first asked for. ConfigurationError where a folder holds no evaluations.
    """

    def __init__(self, own: Store, study: str, folders: Sequence[str] = ()) -> None:
        self._own, self._study = own, study
        self._others = [Store(folder) for folder in _places(folders) if str(folder) != own.root]

    @cached_property
    def _rows(self) -> dict[str, tuple[pa.Table, int]]:
        found: dict[str, tuple[pa.Table, int]] = {}
        own = set(self._own.evaluations.read(["study"]).column("study").to_pylist()) - {self._study}
        for store in [*([self._own] if own else []), *self._others]:
            table = store.evaluations.read()
            keep = pc.equal(table.column("status"), "complete")
            if store is self._own:
                keep = pc.and_(keep, pc.not_equal(table.column("study"), self._study))
            table = table.filter(keep)
            for i, key in enumerate(table.column("key").to_pylist()):
                found.setdefault(key, (table, i))
        return found

    def record(self, key: str) -> EvaluationRecord | None:
        """The record of an evaluation, whoever made it; None where there is none."""
        if key not in self._rows:
            return None
        table, i = self._rows[key]
        return EvaluationRecord.from_row(table.slice(i, 1).to_pylist()[0])

    def records(self) -> list[EvaluationRecord]:
        """All of them."""
        return [record for key in self._rows if (record := self.record(key)) is not None]

    def take(self, evaluator: Evaluator, work: Sequence[Work]) -> tuple[list[EvaluationRecord], list[Work]]:
        """Records of what is known, as the evaluator's study would have them but for their order; and what is left.

        They cost the study nothing. Parts of images are written to its tables, for what is left too, so that more
        images compute only the new ones.
        """
        taken, left = [], []
        for candidate, rung in work:
            found = self.record(evaluator.key(candidate.point, rung))
            if found is None:
                left.append((candidate, rung))
                continue
            own = replace(found, study=evaluator.study, trial=candidate.trial, rung=rung.name, origin=candidate.origin)
            taken.append(replace(own, parameters=candidate.parameters, denoiser_calls=0, seconds=0.0))
        growing = [(c, rung) for c, rung in work if evaluator.metric(rung.metric).grows]
        for rows in self._parts({evaluator.base(c.point, rung) for c, rung in growing}):
            evaluator.store.moments.append(evaluator.adopt(rows))
        return taken, left

    def _parts(self, bases: set[str]) -> Iterator[list[MomentsRecord]]:
        """Parts of these evaluations, file by file: those of many may not fit into memory."""
        wanted = pa.array(sorted(bases), pa.string())
        for store in self._others if bases else ():
            for scanned in _scanned(store):
                chosen = pc.and_(pc.is_in(scanned.rows.column("base"), wanted), pa.array(scanned.keep))
                if pc.any(chosen).as_py():
                    yield _loaded(store, scanned.part, chosen)


def _scanned(store: Store) -> list[Scanned]:
    return store.moments.retry(lambda: store.moments.scan(["base"]))


def _loaded(store: Store, part: Part, chosen: pa.Array) -> list[MomentsRecord]:
    try:
        rows = store.moments.load(part).filter(chosen).to_pylist()
    except (FileNotFoundError, DamagedFileError):
        # Merged away or torn meanwhile: those images are sampled again where they are needed.
        return []
    return [MomentsRecord.from_row(row) for row in rows]


def _places(patterns: Sequence[str]) -> list[Path]:
    """The folders of patterns, each once; ConfigurationError for a pattern that names none with evaluations."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        folders = [Path(path) for path in sorted(glob.glob(pattern)) or [pattern]]
        having = [folder for folder in folders if (folder / "tables" / "evaluations").is_dir()]
        if not having:
            raise ConfigurationError(
                f"--known {pattern} holds no evaluations: give the --out of a search, a grid or of `fewstep evaluate`"
            )
        found |= dict.fromkeys(having)
    return list(found)
