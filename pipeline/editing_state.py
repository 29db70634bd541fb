"""What a search of edits knows and wants next: success, identity and calls at once, on a Pareto front.

A function of its settings and its records, in order, as every search: replaying the records of a killed one gives the
state it had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.pipeline.editing_evaluation import (
    REPORT,
    EditCandidate,
    Objectives,
    balance,
    candidate_of,
    edit_candidate,
    objectives,
)
from fewstep.pipeline.editing_local import ROUNDS, TWIN, merit, moves, shortfall, twin
from fewstep.pipeline.editing_proposer import EditProposer
from fewstep.pipeline.editing_settings import EditSettings
from fewstep.pipeline.ladder import Rung
from fewstep.pipeline.proposers.pareto import front
from fewstep.search_spaces.edit_space import EditSpace
from fewstep.storage.records import EvaluationRecord
from fewstep.tasks.models.files import ModelFiles

SCREEN, FINALS = "screen", "finals"
LAST_ROUND = max(ROUNDS.values())


@dataclass
class EditTrial:
    """One edit and what was found of it, by rung."""

    candidate: EditCandidate
    records: dict[str, EvaluationRecord] = field(default_factory=dict)

    def objectives(self, rung: str) -> Objectives | None:
        """Its objectives at a rung, where it has them."""
        return objectives(self.records.get(rung))


class EditState:
    """What `pipeline/loop.py` drives."""

    def __init__(self, settings: EditSettings, space: EditSpace, files: ModelFiles) -> None:
        self.settings, self.files = settings, files
        seed = settings.subject.seed
        self.screen = Rung(SCREEN, "edit", settings.screen_images, seed)
        self.finals = Rung(FINALS, "edit", settings.final_images, seed)
        self.report = Rung(REPORT, "edit", settings.report_images, seed)
        self.proposer = EditProposer(settings, space, files)
        self.space = space
        self.trials: dict[int, EditTrial] = {}
        self.spent = 0
        self._seen: set[str] = set()
        self._pending: deque[tuple[EditCandidate, Rung]] = deque()
        # 0: the finals are due; then rounds of local moves.
        self._round = 0

    @classmethod
    def replay(
        cls, settings: EditSettings, space: EditSpace, files: ModelFiles, records: Sequence[EvaluationRecord]
    ) -> EditState:
        """The state after `records`, whatever was under way when they end."""
        state = cls(settings, space, files)
        for record in records:
            if record.trial not in state.trials:
                state._adopt(candidate_of(record, files))
            state.trials[record.trial].records.setdefault(record.rung, record)
        own = [t for _, t in sorted(state.trials.items()) if not round_of(t)]
        state.proposer.restore([(t.candidate, t.objectives(SCREEN), SCREEN in t.records) for t in own])
        if any(r.rung == FINALS for r in records):
            state.enter_finals()
        return state

    def next_work(self) -> tuple[EditCandidate, Rung] | None:
        """The next evaluation to run; None where nothing is left to do before more results come in."""
        if self._pending:
            return self._pending.popleft()
        if self.spent >= self.settings.budget or self._round:
            return None
        candidate = self.proposer.propose(self._seen)
        if candidate is None:
            return None
        self._adopt(candidate)
        return candidate, self.screen

    def enter_finals(self) -> bool:
        """With the budget spent and nothing in flight, queue the front's members, then local moves about the best of
        them, round by round; False once they are over."""
        while not self._pending and self._round <= LAST_ROUND:
            if self._round == 0:
                self._pending.extend((t.candidate, self.finals) for t in self.finalists() if FINALS not in t.records)
            else:
                self._queue_moves(self._round)
            self._round += 1
        return bool(self._pending)

    def _queue_moves(self, round_: int) -> None:
        leader = self._leader(round_) if round_ <= ROUNDS[TWIN] else self._lacking(round_)
        if leader is None:
            return
        done = {t.candidate.hash for t in self.trials.values() if FINALS in t.records}
        for origin, config in moves(self.space, leader.candidate.config, round_):
            try:
                candidate = edit_candidate(max(self.trials) + 1, config, origin, {}, self.files)
                calls = candidate.schedule.nfe + calls_to(candidate, self.files)
            except (ScheduleError, ConfigurationError):
                continue
            bound = self.settings.most_calls
            if config.hash not in done and (origin == TWIN or not bound or calls <= bound):
                self._adopt(candidate)
                self._pending.append((candidate, self.finals))

    def _leader(self, round_: int) -> EditTrial | None:
        """The best balanced edit of the finals and of the rounds before one, within the bound on calls."""
        having = [
            t
            for t in self.trials.values()
            if t.objectives(FINALS) is not None and self._allowed(t, FINALS) and round_of(t) < round_
        ]
        return max(having, key=lambda t: (self._balance(t, FINALS), -t.candidate.trial), default=None)

    def _lacking(self, round_: int) -> EditTrial | None:
        """What would be chosen before a round, where it does less than its twin; else None."""
        best, reference = self._best(self.settings.most_calls, round_)
        if best is None or reference is None or not shortfall(best.records[FINALS], reference):
            return None
        return best

    def learn(self, record: EvaluationRecord) -> None:
        """Take in a record."""
        trial = self.trials[record.trial]
        if record.rung not in trial.records:
            trial.records[record.rung] = record
            if record.rung == SCREEN:
                self.proposer.tell(trial.candidate, objectives(record))

    def finalists(self) -> list[EditTrial]:
        """Who is judged again: of the front within the bound on calls, the best balanced, then the most spread out."""
        members = [t for t in self.front(SCREEN) if self._allowed(t, SCREEN)]
        most = self.settings.finalists
        balanced = sorted(members, key=lambda t: -self._balance(t, SCREEN))[: (most + 1) // 2]
        spread = self._front(members, SCREEN, most)
        return list({t.candidate.trial: t for t in [*balanced, *spread]}.values())[:most]

    def front(self, rung: str) -> list[EditTrial]:
        """Trials at a rung that no other one dominates."""
        return self._front([t for _, t in sorted(self.trials.items())], rung, 0)

    @staticmethod
    def _front(trials: Sequence[EditTrial], rung: str, most: int) -> list[EditTrial]:
        having = [(t, values) for t in trials if (values := t.objectives(rung)) is not None]
        return [having[i][0] for i in front([values for _, values in having], most)] if having else []

    def chosen(self, most_calls: int | None = None) -> EditTrial | None:
        """The best of the finals within the bound on calls, None where there is none.

        Best is the best balanced one; where a twin by the published calls was judged, the one with the most merit
        among the edits that it is the twin of.
        """
        return self._best(self.settings.most_calls if most_calls is None else most_calls)[0]

    def _best(self, most: int | None, before: int = LAST_ROUND + 1) -> tuple[EditTrial | None, EvaluationRecord | None]:
        """What is chosen among the rounds `before` one, and the record of its twin."""
        trials = [t for t in self.trials.values() if t.objectives(FINALS) is not None and round_of(t) < before]
        records = {t.candidate.hash: t.records[FINALS] for t in trials}
        known = [(t, records.get(twin(t.candidate.config).hash)) for t in trials if self._allowed(t, FINALS, most)]
        having = [(t, reference) for t, reference in known if reference is not None] or known
        nothing: tuple[None, None] = (None, None)
        return max(having, key=lambda p: (merit(p[0].records[FINALS], p[1]), -p[0].candidate.trial), default=nothing)

    def _allowed(self, trial: EditTrial, rung: str, most: int | None = None) -> bool:
        bound = self.settings.most_calls if most is None else most
        return not bound or trial.records[rung].metrics["nfe"] <= bound

    @staticmethod
    def _balance(trial: EditTrial, rung: str) -> float:
        figures = trial.records[rung].metrics
        return balance(figures["success"], figures["identity"])

    def _adopt(self, candidate: EditCandidate) -> None:
        self.trials[candidate.trial] = EditTrial(candidate)
        self._seen.add(candidate.hash)
        # The way to the step costs about as much as its name says; what counts is that a replay counts alike.
        self.spent += self.settings.screen_images * (candidate.schedule.nfe + calls_to(candidate, self.files))


def round_of(trial: EditTrial) -> int:
    """The round of local moves that a trial belongs to, 0 for what the search proposed."""
    return ROUNDS.get(trial.candidate.origin, 0)


def calls_to(candidate: EditCandidate, files: ModelFiles) -> int:
    """Denoiser calls from the clean image to the edit step."""
    from fewstep.tasks.editing.path import segment, towards_noise

    config = candidate.config
    return towards_noise(segment(config.inversion, files.noise, config.step), files.noise).nfe


def restated(trial: EditTrial, files: ModelFiles, origin: str) -> EditCandidate:
    """The same edit under another origin, for the report."""
    c = trial.candidate
    return edit_candidate(c.trial, c.config, origin, c.parameters, files)
