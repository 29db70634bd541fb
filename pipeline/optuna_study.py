"""A study as Optuna shows it: in a database that optuna-dashboard and Optuna's own plots open.

A projection of the tables, written in one go: it may be lost, cut off or left out, and the next sync brings it up to
date. A trial is a candidate of the search's space: its parameters are what was drawn, its intermediate values those of
the screen and of the main rung. What is outside the space (presets that are no members, tuned schedules) has no
parameters, and no trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from fewstep.errors import FewstepError, TrackingError
from fewstep.pipeline.proposers.options import distributions
from fewstep.pipeline.proposers.optuna import NOTE
from fewstep.storage.masking import masked_argument, told_text, without_secrets
from fewstep.storage.parts import one_line
from fewstep.storage.records import EvaluationRecord

if TYPE_CHECKING:
    from fewstep.pipeline.study import Study

# Attributes of a trial: its number in the tables, and what tells that it changed.
TRIAL, DIGEST = "trial", "digest"
SQLITE = "sqlite:///"


def default_storage(root: Path) -> str:
    """The address of the database `optuna.db` in a study's folder."""
    return f"{SQLITE}{root.absolute() / 'optuna.db'}"


def sync_optuna(study: Study, storage: str | None = None) -> str:
    """Bring Optuna's study of the same name up to date; the address of its storage.

    `storage` is an address that SQLAlchemy knows, such as one of PostgreSQL, or the path of a journal file, which ends
    in .log [default: optuna.db in the study's folder]. What is there already and has not changed is not written again.
    TrackingError where it cannot be written.
    """
    address = storage or default_storage(study.root)
    try:
        with _Quiet():
            held = _open(address)
            try:
                _bring_up(study, held)
            finally:
                held.remove_session()
    except FewstepError:
        raise
    except Exception as error:
        # Optuna lets through what SQLAlchemy, a driver or the system raise.
        reason = without_secrets(one_line(error), address)[:300]
        raise TrackingError(
            f"Optuna's study at {masked_argument(address)} cannot be written: {reason}; nothing is lost: see to it, or "
            "remove it, and sync again"
        ) from error
    return address


class _Quiet:
    """Optuna tells on stderr of every study that it makes."""

    def __enter__(self) -> None:
        self._level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        optuna.logging.set_verbosity(self._level)


def _open(address: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" not in address:
        return JournalStorage(JournalFileBackend(address))
    # A database that somebody reads is waited for.
    options = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
    return RDBStorage(address, engine_kwargs=options)


@dataclass(frozen=True)
class _Shown:
    """A trial as it is to be."""

    number: int
    trial: FrozenTrial

    @property
    def digest(self) -> str:
        """Of everything that may change."""
        t = self.trial
        told = [t.state.name, t.values, t.intermediate_values, {k: v for k, v in t.user_attrs.items() if k != DIGEST}]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _bring_up(study: Study, storage: Any) -> None:
    from optuna.storages import RDBStorage
    from optuna.study import StudyDirection

    name, shown = study.settings.study, list(_trials(study))
    count = max((len(s.trial.values) for s in shown if s.trial.values is not None), default=1)
    known = {s.study_name: s._study_id for s in storage.get_all_studies()}
    if name in known and len(storage.get_study_directions(known[name])) != count:
        # Until something was judged, it is not known how many there are.
        storage.delete_study(known.pop(name))
    study_id = known.get(name)
    if study_id is None:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE] * count, name)
    if isinstance(storage, RDBStorage):
        _write_rows(storage, study_id, shown)
        return
    there = [t.user_attrs.get(DIGEST) for t in storage.get_all_trials(study_id, deepcopy=False)]
    if there != [s.digest for s in shown[: len(there)]]:
        # Trials that are over cannot be changed: it is made again.
        storage.delete_study(study_id)
        study_id, there = storage.create_new_study([StudyDirection.MINIMIZE] * count, name), []
    for entry in shown[len(there) :]:
        entry.trial.user_attrs[DIGEST] = entry.digest
        storage.create_new_trial(study_id, entry.trial)


def _write_rows(storage: Any, study_id: int, shown: Sequence[_Shown]) -> None:
    """What is new or has changed, and all after it, in one transaction: Optuna's own calls take several a trial."""
    from optuna.storages._rdb import models as m
    from sqlalchemy import delete, func, insert, select

    of_study = select(m.TrialModel.trial_id).where(m.TrialModel.study_id == study_id)
    of_trials = (m.TrialParamModel, m.TrialValueModel, m.TrialIntermediateValueModel, m.TrialUserAttributeModel)
    with storage.engine.begin() as connection:
        attribute = m.TrialUserAttributeModel
        told = select(attribute.value_json).join(m.TrialModel, m.TrialModel.trial_id == attribute.trial_id)
        told = told.where(m.TrialModel.study_id == study_id, attribute.key == DIGEST).order_by(m.TrialModel.number)
        there = [json.loads(text) for (text,) in connection.execute(told)]
        same = next((i for i, (a, b) in enumerate(zip(there, shown, strict=False)) if a != b.digest), len(there))
        number = min(same, len(shown))
        for model in (*of_trials, m.TrialSystemAttributeModel, m.TrialHeartbeatModel, m.TrialModel):
            later = of_study.where(m.TrialModel.number >= number)
            connection.execute(delete(model).where(model.trial_id.in_(later)))
        shown = shown[number:]
        last = connection.execute(select(func.max(m.TrialModel.trial_id))).scalar() or 0
        rows: dict[Any, list[dict[str, Any]]] = {}
        for i, entry in enumerate(shown):
            t, trial_id = entry.trial, last + 1 + i
            values = {"trial_id": trial_id, "number": number + i, "study_id": study_id, "state": t.state}
            times = {"datetime_start": t.datetime_start, "datetime_complete": t.datetime_complete}
            rows.setdefault(m.TrialModel, []).append(values | times)
            rows.setdefault(m.TrialParamModel, []).extend(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": t.distributions[name].to_internal_repr(value),
                    "distribution_json": optuna.distributions.distribution_to_json(t.distributions[name]),
                }
                for name, value in t.params.items()
            )
            finite = m.TrialValueModel.TrialValueType.FINITE
            rows.setdefault(m.TrialValueModel, []).extend(
                {"trial_id": trial_id, "objective": k, "value": v, "value_type": finite}
                for k, v in enumerate(t.values or ())
            )
            kind = m.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
            rows.setdefault(m.TrialIntermediateValueModel, []).extend(
                {"trial_id": trial_id, "step": k, "intermediate_value": v, "intermediate_value_type": kind}
                for k, v in t.intermediate_values.items()
            )
            rows.setdefault(m.TrialUserAttributeModel, []).extend(
                {"trial_id": trial_id, "key": k, "value_json": json.dumps(v)}
                for k, v in {**t.user_attrs, DIGEST: entry.digest}.items()
            )
        for model, entries in rows.items():
            if entries:
                connection.execute(insert(model.__table__), entries)


# -- what is shown ----------------------------------------------------------------------------------------


def _trials(study: Study) -> Iterator[_Shown]:
    """Every candidate of the space that has a record of the search, by number."""
    problem = study.problem
    screen, main = problem.ladder.screen.name, problem.ladder.main.name
    space: Any = getattr(problem, "space", None) or getattr(problem, "schedules", None)
    known = distributions(space)
    records: dict[int, list[EvaluationRecord]] = {}
    for record in study.records():
        if record.parameters and not record.of_report:
            records.setdefault(record.trial, []).append(record)
    for number in sorted(records):
        own = {r.rung: r for r in records[number]}
        if screen not in own and main not in own:
            # A first look at a preset, which went no further.
            continue
        drawn = {k: v for k, v in records[number][0].parameters.items() if k != NOTE}
        if set(drawn) <= set(known):
            yield _Shown(number, _trial(problem, own, (screen, main), drawn, known))


def _trial(
    problem: Any,
    own: dict[str, EvaluationRecord],
    rungs: tuple[str, str],
    drawn: dict[str, Any],
    known: dict[str, BaseDistribution],
) -> FrozenTrial:
    steps = [own.get(rung) for rung in dict.fromkeys(rungs)]
    reported = {i: r.value for i, r in enumerate(steps) if r is not None and r.value is not None}
    last = next(r for r in reversed(steps) if r is not None)
    values = _objectives(problem, own, rungs)
    single = not hasattr(problem, "objectives")
    state = TrialState.COMPLETE if values else TrialState.PRUNED if reported and single else TrialState.FAIL
    if last.status != "complete":
        state, values = TrialState.FAIL, None
    if state == TrialState.PRUNED:
        values = [reported[max(reported)]]
    finished = _local(last.finished_at)
    trial = create_trial(
        state=state,
        values=values,
        params=drawn,
        distributions={name: known[name] for name in drawn},
        intermediate_values=reported if single else {},
        user_attrs={
            TRIAL: last.trial,
            "candidate": last.candidate,
            "origin": last.origin,
            "nfe": last.nfe,
            **{f"{rung}_value": r.value for rung, r in own.items() if r.value is not None},
            **({"error": told_text(last.error)[:500]} if last.error else {}),
        },
    )
    trial.datetime_start = trial.datetime_complete = finished
    return trial


def _objectives(problem: Any, own: dict[str, EvaluationRecord], rungs: tuple[str, str]) -> list[float] | None:
    """What is minimised, in figures as they were measured."""
    screen, main = (own.get(rung) for rung in rungs)
    if hasattr(problem, "objectives"):
        found = problem.objectives(main) or problem.objectives(screen)
        return list(found) if found else None
    return None if main is None or main.value is None else [main.value]


def _local(time: datetime) -> datetime:
    return time.astimezone().replace(tzinfo=None)
