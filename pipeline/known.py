"""Evaluations that were made elsewhere, by other folders or by another study of the same one: taken, not made again.

The evaluation key says what would be computed, whoever asks for it, so that a value may be taken wherever it lies.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fewstep.errors import ConfigurationError, DamagedFileError
from fewstep.pipeline.evaluator import Evaluator
from fewstep.pipeline.trial import Work
from fewstep.storage.parts import Part
from fewstep.storage.records import EvaluationRecord, MomentsRecord
from fewstep.storage.store import Store
from fewstep.storage.tables import Scanned, Table

# How often a folder is read again whose files are merged meanwhile.
_ATTEMPTS = 10


class Known:
    """Complete evaluations beneath `folders` (patterns), and of the other studies of `own`, by key.

    Read once, when first asked for. ConfigurationError where a folder holds no evaluations.
    """

    def __init__(self, own: Store, study: str, folders: Sequence[str] = ()) -> None:
        self._own, self._study = own, study
        self._stores: list[Store] = []
        here = Path(own.root).resolve()
        self._others = [Store(folder) for folder in _places(folders) if folder.resolve() != here]

    def records(self, keys: Iterable[str]) -> dict[str, EvaluationRecord]:
        """The records of evaluations, whoever made them, by key; those that nobody made are not there."""
        wanted = list(dict.fromkeys(keys))
        for _ in range(_ATTEMPTS if wanted else 0):
            try:
                return self._loaded([key for key in wanted if key in self._index])
            except (FileNotFoundError, DamagedFileError):
                # Somebody who still writes there has merged a file since, or one is torn: look again.
                del self._index
        return {}

    def paces(self) -> dict[tuple[str, str], tuple[float, int]]:
        """Seconds that evaluations took and their denoiser calls, by model hash and metric."""
        columns = ["model_hash", "metric", "seconds", "denoiser_calls"]
        found: dict[tuple[str, str], tuple[float, int]] = {}
        for store in self._others:
            sums = store.evaluations.read(columns).group_by(columns[:2]).aggregate([(c, "sum") for c in columns[2:]])
            for row in sums.to_pylist():
                key = row["model_hash"], row["metric"]
                seconds, calls = found.get(key, (0.0, 0))
                found[key] = seconds + row["seconds_sum"], calls + row["denoiser_calls_sum"]
        return found

    @cached_property
    def _index(self) -> dict[str, tuple[int, Part, int]]:
        """Store, part and row of every complete evaluation, the first by key."""
        found: dict[str, tuple[int, Part, int]] = {}
        own = set(self._own.evaluations.read(["study"]).column("study").to_pylist()) - {self._study}
        self._stores = [*([self._own] if own else []), *self._others]
        for number, store in enumerate(self._stores):
            for scanned in _scanned(store.evaluations, ("study", "key", "status")):
                rows = scanned.rows
                keep = pc.and_(pc.equal(rows.column("status"), "complete"), pa.array(scanned.keep))
                if store is self._own:
                    keep = pc.and_(keep, pc.not_equal(rows.column("study"), self._study))
                keys = rows.column("key").to_pylist()
                for i in np.flatnonzero(keep.to_numpy(zero_copy_only=False)):
                    found.setdefault(keys[i], (number, scanned.part, int(i)))
        return found

    @cached_property
    def _bases(self) -> set[str]:
        """Addresses of all parts."""
        return {base for store in self._others for base in store.moments.read(["base"]).column("base").to_pylist()}

    def _loaded(self, keys: Sequence[str]) -> dict[str, EvaluationRecord]:
        by_part: dict[tuple[int, Part], list[tuple[int, str]]] = {}
        for key in keys:
            number, part, i = self._index[key]
            by_part.setdefault((number, part), []).append((i, key))
        found: dict[str, EvaluationRecord] = {}
        for (number, part), places in by_part.items():
            rows = self._stores[number].evaluations.load(part).take(pa.array([i for i, _ in places])).to_pylist()
            found |= {key: EvaluationRecord.from_row(row) for (_, key), row in zip(places, rows, strict=True)}
        return {key: found[key] for key in keys}

    def take(self, evaluator: Evaluator, work: Sequence[Work]) -> tuple[list[EvaluationRecord], list[Work]]:
        """Records of what is known, as the evaluator's study would have them but for their order; and what is left.

        They cost the study nothing. Parts of images are written to its tables, for what is left too, so that more
        images compute only the new ones.
        """
        taken, left = [], []
        keys = [evaluator.key(candidate.point, rung) for candidate, rung in work]
        known = self.records(keys)
        for key, (candidate, rung) in zip(keys, work, strict=True):
            found = known.get(key)
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
        wanted = pa.array(sorted(bases & self._bases) if bases else [], pa.string())
        for store in self._others if len(wanted) else ():
            for scanned in _scanned(store.moments, ("base",)):
                chosen = pc.and_(pc.is_in(scanned.rows.column("base"), wanted), pa.array(scanned.keep))
                if pc.any(chosen).as_py():
                    yield _parts(store, scanned.part, chosen)


def _scanned(table: Table[Any], columns: Sequence[str]) -> list[Scanned]:
    return table.retry(lambda: table.scan(columns))


def _parts(store: Store, part: Part, chosen: pa.Array) -> list[MomentsRecord]:
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
