"""Local moves after the finals, one parameter away from the best balanced edit: first in strength and boundary, then in
the calls of its ways.

The second round is held against the edit's twin by the published calls: what is chosen should do no less than 40 + 40
calls of DDIM do, in neither measure. Where it still does, its calls are moved further, round after round. All of it is
judged on the finals' images, and none on the report's.
"""

from __future__ import annotations

from fewstep.pipeline.editing_evaluation import balance
from fewstep.search_spaces.edit import PUBLISHED, EditConfig
from fewstep.search_spaces.edit_space import EditSpace
from fewstep.storage.records import EvaluationRecord

# Origins of the trials of each round.
MOVED, REROUTED, TWIN = "moved", "rerouted", "twin"
AGAIN = tuple(f"{REROUTED}-{n}" for n in (3, 4, 5))
ROUNDS = {MOVED: 1, REROUTED: 2, TWIN: 2} | {name: 3 + i for i, name in enumerate(AGAIN)}
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
