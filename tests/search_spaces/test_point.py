"""Points: every kind comes back from JSON as it was, and what is no point is refused."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pytest

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces import kinds as registry
from fewstep.search_spaces.edit import EditConfig
from fewstep.search_spaces.ode import OdeSettings
from fewstep.search_spaces.point import (
    EditPoint,
    JointPoint,
    OdePoint,
    Point,
    QuantizationPoint,
    SchedulePoint,
    as_point,
    edit_of,
    joint,
    parse_point,
    quantization_of,
    schedule_of,
)
from fewstep.search_spaces.quantization import QuantizationConfig, named
from fewstep.search_spaces.registry import SpaceKind
from fewstep.search_spaces.schedule.presets import preset

LAMBDAS = (-5.0, -3.0, -1.0, 1.0, 3.0)
SCHEDULE = preset("unipc-2-bh2", LAMBDAS).model_copy(update={"name": "mine", "provenance": {"by": "me"}})
QUANTIZATION = QuantizationPoint(config=named("w4a8-tfmq-paper"))
POINTS = {
    "schedule": SchedulePoint(schedule=SCHEDULE),
    "ode": OdePoint(solver=OdeSettings()),
    "quantization": QUANTIZATION,
    "edit": EditPoint(edit=EditConfig(step=-1.0, strength_z=2.0, generation=SCHEDULE)),
    "joint": JointPoint(members=(SchedulePoint(schedule=SCHEDULE), QUANTIZATION)),
}


@pytest.mark.parametrize("kind", POINTS)
def test_a_point_comes_back_from_json_with_its_hash(kind: str) -> None:
    point = POINTS[kind]
    assert point.kind == kind
    back = parse_point(point.to_json())
    assert type(back) is type(point)
    assert back == point
    assert (back.hash, back.nfe, back.name) == (point.hash, point.nfe, point.name)
    assert back.to_json() == point.to_json()
    assert parse_point(point.to_json().encode()) == point
    # Whoever writes the JSON anew, in whatever order, writes the same point.
    shuffled = dict(reversed(json.loads(point.to_json()).items()))
    assert parse_point(json.dumps(shuffled, indent=2)).hash == point.hash


def test_hashes_tell_points_apart() -> None:
    assert len({point.hash for point in POINTS.values()}) == len(POINTS)
    assert all(len(point.hash) == 16 for point in POINTS.values())


@pytest.mark.parametrize("what", [SCHEDULE, OdeSettings()])
def test_the_json_of_a_sampler_alone_is_a_point_too(what: Any) -> None:
    point = as_point(what)
    assert parse_point(what.to_json()) == point
    assert point.hash == what.hash
    assert as_point(point) is point


def test_what_only_names_a_point_is_not_in_its_hash() -> None:
    renamed = SCHEDULE.model_copy(update={"name": "yours", "provenance": {}})
    for one, other in (
        (as_point(SCHEDULE), as_point(renamed)),
        (joint(as_point(SCHEDULE), QUANTIZATION), joint(as_point(renamed), QUANTIZATION)),
        (POINTS["edit"], EditPoint(edit=EditConfig(step=-1.0, strength_z=2.0, generation=renamed))),
    ):
        assert one.hash == other.hash
    # Nor is the order of parts.
    assert joint(QUANTIZATION, as_point(SCHEDULE)).hash == POINTS["joint"].hash
    other = SCHEDULE.model_copy(update={"lambdas": (-5.0, -3.0, -1.0, 1.5, 3.0)})
    assert as_point(other).hash != as_point(SCHEDULE).hash
    assert joint(as_point(other), QUANTIZATION).hash != POINTS["joint"].hash


def test_parts_are_found_by_kind() -> None:
    point = POINTS["joint"]
    assert schedule_of(point) == SCHEDULE
    assert quantization_of(point) == QUANTIZATION.config
    assert edit_of(point) is None
    assert edit_of(POINTS["edit"]) == POINTS["edit"].edit  # type: ignore[attr-defined]
    assert schedule_of(QUANTIZATION) is None
    assert joint(QUANTIZATION) is QUANTIZATION
    assert point.nfe == SCHEDULE.nfe == 4


@pytest.mark.parametrize(
    "members",
    [
        (),
        (as_point(SCHEDULE),),
        (QUANTIZATION,),
        (as_point(SCHEDULE), OdePoint(solver=OdeSettings())),
        (QUANTIZATION, QuantizationPoint(config=QuantizationConfig())),
        (as_point(SCHEDULE), as_point(SCHEDULE), QUANTIZATION),
        (as_point(SCHEDULE), POINTS["edit"], QUANTIZATION),
        (POINTS["joint"], QUANTIZATION),
    ],
    ids=lambda members: "+".join(m.kind for m in members),
)
def test_a_joint_point_has_one_part_that_samples_and_others_of_other_kinds(members: tuple[Point, ...]) -> None:
    with pytest.raises(ScheduleError, match="joint point"):
        JointPoint.build(members=members)
    text = json.dumps({"kind": "joint", "members": [json.loads(m.to_json()) for m in members]})
    with pytest.raises(ScheduleError, match="joint point"):
        parse_point(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "3",
        "null",
        "{}",
        '{"kind": 3}',
        '{"kind": "schedule"}',
        '{"kind": "edit", "edit": {"step": "soon"}}',
        '{"kind": "quantization", "config": {"weight_bits": 99}}',
        '{"kind": "joint", "members": 3}',
        '{"kind": "joint", "members": [3]}',
        '{"kind": "joint", "members": [{}]}',
        '{"kind": "joint", "members": [{"kind": "schedule"}]}',
    ],
)
def test_what_is_no_point_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ScheduleError, match="not a valid") as caught:
        parse_point(text)
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_refused() -> None:
    text = json.dumps(json.loads(QUANTIZATION.to_json()) | {"colour": "red"})
    with pytest.raises(ScheduleError, match="colour"):
        parse_point(text)


@pytest.mark.parametrize("text", ['{"kind": "magic"}', '{"kind": "joint", "members": [{"kind": "magic"}]}'])
def test_a_kind_that_is_not_there_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="magic"):
        parse_point(text)


class PrunedPoint(Point):
    """A kind of another package's."""

    kind: Literal["pruned"] = "pruned"
    share: float
    changes_network: ClassVar[bool] = True


def test_kinds_of_other_packages_are_points_alone_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = SpaceKind(PrunedPoint, lambda calls: None, lambda worker: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(registry.SPACES, "load", lambda name: {"pruned": kind}[name])
    point = PrunedPoint(share=0.25)
    assert parse_point(point.to_json()) == point
    both = joint(as_point(SCHEDULE), point)
    back = parse_point(both.to_json())
    assert back == both
    assert back.part(PrunedPoint) == point
    assert back.hash == both.hash != joint(as_point(SCHEDULE), PrunedPoint(share=0.5)).hash
