"""A point: one whole candidate, as data. The union of all kinds of them, read back by their `kind`.

A point says how images are made: by a solver schedule or an ODE solver, by a network that is changed (quantised, say),
by both together, or by an edit. Other packages bring kinds of their own through `fewstep.spaces`, see `registry.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError, field_validator, model_validator

from fewstep.errors import ScheduleError
from fewstep.search_spaces.checked import first_problem
from fewstep.search_spaces.edit import EditConfig, Way
from fewstep.search_spaces.kinds import SPACES
from fewstep.search_spaces.ode import OdeSettings, Sampler, parse_sampler
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.schedule import SolverSchedule

P = TypeVar("P", bound="Point")


def content_key(**parts: object) -> str:
    """32 hex digits that name the parts."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Point(BaseModel):
    """Base of all points; a subclass names its `kind` by a `Literal` field of that name, with a default.

    `changes_network` tells what does not sample by itself, but changes the network that another part samples with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    changes_network: ClassVar[bool] = False

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits. What only names a point, such as a schedule's provenance, is not in it."""
        return content_key(point=self.to_json())[:16]

    @property
    def nfe(self) -> int:
        """Denoiser calls for one image; 0 where it does not say."""
        return 0

    @property
    def name(self) -> str:
        """As a table shows it."""
        return self.hash

    @property
    def needs_statistics(self) -> bool:
        """Whether it only runs with statistics of the model."""
        return False

    def to_json(self) -> str:
        """The point as JSON; `parse_point` reads it back exactly."""
        return self.model_dump_json()

    @property
    def parts(self) -> Iterator[Point]:
        """What it is made of: itself, or the parts of a joint point."""
        yield self

    def part(self, kind: type[P]) -> P | None:
        """Its part of one kind, where it has one."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Construct; ScheduleError with the first problem instead of pydantic's error."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ScheduleError(f"not a valid point: {first_problem(error)}") from None


class SchedulePoint(Point):
    """A solver schedule."""

    kind: Literal["schedule"] = "schedule"
    schedule: SolverSchedule

    @property
    def hash(self) -> str:
        """The schedule's."""
        return self.schedule.hash

    @property
    def nfe(self) -> int:
        """The schedule's."""
        return self.schedule.nfe

    @property
    def name(self) -> str:
        """The schedule's name, or its hash."""
        return self.schedule.name or self.schedule.hash

    @property
    def needs_statistics(self) -> bool:
        """Whether the schedule does."""
        return self.schedule.needs_statistics


class OdePoint(Point):
    """An ODE solver, which no search proposes."""

    kind: Literal["ode"] = "ode"
    solver: OdeSettings

    @property
    def hash(self) -> str:
        """The solver's."""
        return self.solver.hash

    @property
    def nfe(self) -> int:
        """The solver's; 0 for an adaptive one, whose calls are counted."""
        return self.solver.nfe

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return self.solver.name


class QuantizationPoint(Point):
    """A network quantised by a config."""

    kind: Literal["quantization"] = "quantization"
    config: QuantizationConfig
    changes_network: ClassVar[bool] = True

    @property
    def hash(self) -> str:
        """The config's."""
        return self.config.hash

    @property
    def name(self) -> str:
        """The config's name."""
        return self.config.name


class EditPoint(Point):
    """An edit."""

    kind: Literal["edit"] = "edit"
    edit: EditConfig

    @property
    def hash(self) -> str:
        """The edit's."""
        return self.edit.hash

    @property
    def nfe(self) -> int:
        """Calls of the way to the step and of the way back, as they are named; what was counted is in the record."""
        return _calls(self.edit.inversion) + _calls(self.edit.generation)


def _calls(way: Way) -> int:
    if isinstance(way, SolverSchedule):
        return way.nfe
    calls = way.partition("@")[2]
    return int(calls) if calls.isdecimal() else 0


class JointPoint(Point):
    """Several kinds together, each once: a sampler, and what changes the network that it samples with."""

    kind: Literal["joint"] = "joint"
    members: tuple[SerializeAsAny[Point], ...]

    @field_validator("members", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(point_of(v) if isinstance(v, dict) else v for v in value)

    @model_validator(mode="after")
    def _are_one_of_each(self) -> Self:
        kinds = [part.kind for part in self.members]
        if len(kinds) < 2 or len(set(kinds)) < len(kinds) or "joint" in kinds:
            raise ValueError(f"a joint point has two or more different kinds, got {', '.join(kinds) or '(none)'}")
        if sum(not part.changes_network for part in self.members) != 1:
            raise ValueError(f"one part of a joint point samples, the others change the network; got {kinds}")
        return self

    @property
    def hash(self) -> str:
        """Of the parts' hashes by kind."""
        return content_key(**{part.kind: part.hash for part in self.members})[:16]

    @property
    def nfe(self) -> int:
        """That of the part that samples."""
        return max(part.nfe for part in self.members)

    @property
    def name(self) -> str:
        """The parts' names."""
        return " ".join(part.name for part in self.members)

    @property
    def needs_statistics(self) -> bool:
        """Whether a part does."""
        return any(part.needs_statistics for part in self.members)

    @property
    def parts(self) -> Iterator[Point]:
        """The parts."""
        yield from self.members


OWN: dict[str, type[Point]] = {
    "schedule": SchedulePoint,
    "ode": OdePoint,
    "quantization": QuantizationPoint,
    "edit": EditPoint,
    "joint": JointPoint,
}


def point_of(fields: dict[str, Any]) -> Point:
    """The point of a JSON object; ScheduleError where it is none, ConfigurationError for a kind that is not there."""
    kind = fields.get("kind")
    if not isinstance(kind, str):
        raise ScheduleError("not a valid point: it has no kind")
    if kind in OWN:
        return OWN[kind].model_validate(fields)
    point: type[Point] = SPACES.load(kind).point
    return point.model_validate(fields)


def parse_point(text: str | bytes) -> Point:
    """A point from its JSON; a schedule's or an ODE solver's own JSON is one too. ScheduleError where it is none."""
    try:
        fields = json.loads(text)
        if isinstance(fields, dict) and "kind" not in fields:
            return as_point(parse_sampler(text if isinstance(text, str) else text.decode()))
        return point_of(fields)
    except ValidationError as error:
        raise ScheduleError(f"not a valid point: {first_problem(error)}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise ScheduleError(f"not a valid point: {error}") from None


def as_point(what: Point | Sampler) -> Point:
    """A point, or the point of a schedule or of an ODE solver."""
    if isinstance(what, Point):
        return what
    return OdePoint(solver=what) if isinstance(what, OdeSettings) else SchedulePoint(schedule=what)


def joint(*parts: Point) -> Point:
    """The parts as one point; one part alone is itself."""
    return parts[0] if len(parts) == 1 else JointPoint(members=parts)


def schedule_of(point: Point) -> SolverSchedule | None:
    """The schedule that a point samples by, where it has one."""
    part = point.part(SchedulePoint)
    return part.schedule if part else None


def with_schedule(point: Point, schedule: SolverSchedule) -> Point:
    """The point with another schedule in the place of its own."""
    changed = SchedulePoint(schedule=schedule)
    return joint(*(changed if isinstance(part, SchedulePoint) else part for part in point.parts))


def quantization_of(point: Point) -> QuantizationConfig | None:
    """The config that a point's network is quantised by, where it is."""
    part = point.part(QuantizationPoint)
    return part.config if part else None


def edit_of(point: Point) -> EditConfig | None:
    """The edit that a point is, where it is one."""
    part = point.part(EditPoint)
    return part.edit if part else None
