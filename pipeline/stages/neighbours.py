"""Local moves after the finals, one parameter away from the best balanced edit: first in strength and boundary, then in
the calls of its ways.

The second round is held against the edit's twin by the published calls: what is chosen should do no less than 40 + 40
calls of DDIM do, in neither measure. Where it still does, its calls are moved further, round after round. All of it is
judged on the finals' images, and none on the report's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.search import Search, Stage
from fewstep.pipeline.trial import Candidate, Trial
from fewstep.search_spaces.edit import PUBLISHED, EditConfig
from fewstep.search_spaces.edit.space import EditSpace
from fewstep.search_spaces.point import EditPoint, edit_of
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.editing.measures import balance

if TYPE_CHECKING:
    from fewstep.pipeline.policies.edit import EditPolicy

# Origins of the trials of each round.
MOVED, REROUTED, TWIN = "moved", "rerouted", "twin"
AGAIN = tuple(f"{REROUTED}-{n}" for n in (3, 4, 5))
ROUNDS = {MOVED: 1, REROUTED: 2, TWIN: 2} | {name: 3 + i for i, name in enumerate(AGAIN)}
LAST_ROUND = max(ROUNDS.values())
OF_EDIT, OF_WAYS = ("strength_z", "strength_h", "C", "standardise", "images"), ("inversion_calls", "generation_calls")


def twin(config: EditConfig) -> EditConfig:
    """The same edit by the published 40 + 40 calls of DDIM."""
    return config.model_copy(update={"inversion": PUBLISHED, "generation": PUBLISHED})


def moves(space: EditSpace, leader: EditConfig, round_: int) -> list[tuple[str, EditConfig]]:
    """Origins and edits of a round, counted from 1, about the best edit so far."""
    if round_ == ROUNDS[MOVED]:
        return [(MOVED, c) for c in space.neighbours(leader, OF_EDIT)]
    if round_ > ROUNDS[TWIN]:
        return [(AGAIN[round_ - 3], c) for c in space.neighbours(leader, OF_WAYS)]
    return [(TWIN, twin(leader)), *((REROUTED, c) for c in space.neighbours(leader, OF_WAYS))]


def shortfall(record: EvaluationRecord, reference: EvaluationRecord) -> float:
    """What an edit lacks of another's success and of its identity, together; 0 where it lacks nothing."""
    return sum(max(0.0, reference.metrics[name] - record.metrics[name]) for name in ("success", "identity"))


def merit(record: EvaluationRecord, reference: EvaluationRecord | None) -> float:
    """Balance, less the shortfall to a twin where there is one."""
    value = balance(record.metrics["success"], record.metrics["identity"])
    return value if reference is None else value - shortfall(record, reference)


def round_of(trial: Trial) -> int:
    """The round of local moves that a trial belongs to, 0 for what the search proposed."""
    return ROUNDS.get(trial.candidate.origin, 0)


def chosen(search: Search, policy: EditPolicy, most_calls: int | None = None) -> Trial | None:
    """The best of the finals within the bound on calls, None where there is none.

    Best is the best balanced one; where a twin by the published calls was judged, the one with the most merit among the
    edits that it is the twin of.
    """
    return _best(search, policy, policy.most_calls if most_calls is None else most_calls)[0]


def _best(
    search: Search, policy: EditPolicy, most: int | None, before: int = LAST_ROUND + 1
) -> tuple[Trial | None, EvaluationRecord | None]:
    """What is chosen among the rounds `before` one, and the record of its twin."""
    finals = search.ladder.finals
    trials = [t for t in search.trials.values() if policy.objectives_at(t, finals) is not None and round_of(t) < before]
    records = {t.candidate.hash: t.records[finals.name] for t in trials}
    known = [(t, records.get(twin(_edit(t)).hash)) for t in trials if policy.allowed(t, finals, most)]
    having = [(t, reference) for t, reference in known if reference is not None] or known
    nothing: tuple[None, None] = (None, None)
    return max(having, key=lambda p: (merit(p[0].records[finals.name], p[1]), -p[0].number), default=nothing)


def _edit(trial: Trial) -> EditConfig:
    edit = edit_of(trial.candidate.point)
    assert edit is not None
    return edit


class Neighbours(Stage):
    """One round of local moves."""

    def __init__(self, space: EditSpace, policy: EditPolicy, round_: int) -> None:
        self._space, self._policy, self._round = space, policy, round_

    def owns(self, candidate: Candidate) -> bool:
        """See Stage."""
        return ROUNDS.get(candidate.origin) == self._round

    def cost(self, search: Search, candidate: Candidate) -> int:
        """As any edit's screen, though it goes to the finals at once: what counts is that a replay counts alike."""
        return self._policy.cost(search, candidate)

    def queue(self, search: Search) -> None:
        """See Stage. What was judged, and what is queued already, is left out."""
        leader = self._leader(search) if self._round <= ROUNDS[TWIN] else self._lacking(search)
        if leader is None:
            return
        finals, bound = search.ladder.finals, self._policy.most_calls
        done = {t.candidate.hash for t in search.trials.values() if finals.name in t.records}
        for origin, config in moves(self._space, _edit(leader), self._round):
            point = EditPoint(edit=config)
            try:
                calls = self._policy.calls(point)
            except (ScheduleError, ConfigurationError):
                continue
            if point.hash not in done and (origin == TWIN or not bound or calls <= bound):
                done.add(point.hash)
                candidate = search.proposer.admit(point, origin, search.trials)
                search.adopt(candidate)
                search.wait_for(candidate, finals)

    def _leader(self, search: Search) -> Trial | None:
        """The best balanced edit of the finals and of the rounds before, within the bound on calls."""
        policy, finals = self._policy, search.ladder.finals
        having = [
            t
            for t in search.trials.values()
            if policy.objectives_at(t, finals) is not None and policy.allowed(t, finals) and round_of(t) < self._round
        ]
        return max(having, key=lambda t: (policy.balance(t, finals), -t.number), default=None)

    def _lacking(self, search: Search) -> Trial | None:
        """What would be chosen so far, where it does less than its twin; else None."""
        best, reference = _best(search, self._policy, self._policy.most_calls, self._round)
        if best is None or reference is None:
            return None
        return best if shortfall(best.records[search.ladder.finals.name], reference) else None
