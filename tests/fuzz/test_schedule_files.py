"""Schedule files that were damaged, or are any JSON at all: the schedule that they say, or a FewstepError."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError, ScheduleError
from fewstep.search_spaces.schedule import MIN_GAP, SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.presets import PRESETS, preset

LAMBDAS = (-5.0, -2.5, -0.5, 1.5, 4.0)
SCHEDULES = [preset(name, LAMBDAS) for name in sorted(PRESETS) if name != "heun"]
TEXTS = [schedule.to_json() for schedule in SCHEDULES]
FIELDS = sorted({name for text in TEXTS for name in json.loads(text)} | {"guidance", "skips", "threshold"})

numbers = st.one_of(
    st.integers(),
    st.integers(min_value=10**300, max_value=10**400),
    st.floats(),
    st.sampled_from([1e308, -0.0, 1e-320]),
)
odd = st.sampled_from(["inf", "-inf", "nan", "Infinity", "1e999", "", "data", "\ud800", "true", "0x10", "१"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | odd | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8) | st.sampled_from(FIELDS), inner),
    max_leaves=12,
)


def _read(path: Path, text: bytes) -> SolverSchedule | None:
    """The schedule of a file, checked for sense; None where it is refused in one line that names it."""
    path.write_bytes(text)
    told: FewstepError | None = None
    try:
        schedule = load_schedule(path)
    except FewstepError as error:
        told = error
    if told is not None:
        assert isinstance(told, ScheduleError)
        assert str(path) in str(told)
        assert "\n" not in str(told)
        return None
    assert len(schedule.lambdas) == len(schedule.steps) + 1
    assert all(b - a >= MIN_GAP for a, b in zip(schedule.lambdas, schedule.lambdas[1:], strict=False))
    assert all(math.isfinite(value) for value in schedule.lambdas[1:-1])
    assert SolverSchedule.from_json(schedule.to_json()).hash == schedule.hash
    assert schedule.nfe >= 0
    return schedule


def _plain(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@st.composite
def bytes_changed(draw: st.DrawFn) -> Callable[[bytes, bytes], bytes]:
    """Bits flipped, bytes cut, spliced, moved or put in."""
    kind = draw(st.sampled_from(["flip", "cut", "head", "splice", "insert", "replace"]))
    first, second = draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))
    bit, filling = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=8))

    def change(own: bytes, other: bytes) -> bytes:
        a, b = int(first * len(own)), int(second * len(other))
        flipped = own[:a] + bytes([own[a] ^ 1 << bit]) + own[a + 1 :]
        return {
            "flip": flipped,
            "cut": own[:a],
            "head": own[a:],
            "splice": own[:a] + other[b:],
            "insert": own[:a] + filling + own[a:],
            "replace": own[:a] + filling + own[a + len(filling) :],
        }[kind]

    return change


@given(st.sampled_from(TEXTS), st.sampled_from(TEXTS), bytes_changed())
def test_changed_bytes_are_read_as_what_they_say_or_refused(
    tmp_path: Path, own: str, other: str, change: Callable[[bytes, bytes], bytes]
) -> None:
    text = change(own.encode(), other.encode())
    schedule = _read(tmp_path / "schedule.json", text)
    if schedule is None:
        return
    said = _plain(text)
    assert isinstance(said, dict)
    lambdas = [float(value) for value in said["lambdas"]]
    assert list(schedule.lambdas) == lambdas
    assert len(said["steps"]) == len(schedule.steps)


@st.composite
def entries_changed(draw: st.DrawFn) -> str:
    """A schedule's JSON of which some entries, at any depth, are something else, gone or doubled."""
    content = json.loads(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 3))):
        place, depth = content, draw(st.integers(1, 5))
        for level in range(depth):
            if not isinstance(place, dict | list) or not place:
                break
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if level + 1 == depth or not isinstance(place[key], dict | list):
                how = draw(st.sampled_from(["set", "drop", "double", "add"]))
                if how == "set":
                    place[key] = draw(anything)
                elif how == "drop":
                    del place[key]
                elif how == "double" and isinstance(place, list):
                    place.append(place[key])
                elif isinstance(place, dict):
                    place[draw(st.sampled_from(FIELDS) | st.text(max_size=6))] = draw(anything)
                break
            place = place[key]
    return json.dumps(content)


@given(entries_changed())
def test_changed_entries_are_read_as_what_they_say_or_refused(tmp_path: Path, text: str) -> None:
    schedule = _read(tmp_path / "schedule.json", text.encode())
    if schedule is None:
        return
    said = json.loads(text)
    # Nothing is left out that the file says, and nothing that it does not say is put in but defaults.
    assert set(said) <= set(SolverSchedule.model_fields)
    assert list(schedule.lambdas) == [float(value) for value in said["lambdas"]]
    for name in ("first_call", "guidance", "threshold"):
        if name in said and not isinstance(said[name], dict):
            assert getattr(schedule, name) == said[name]


@given(anything)
def test_any_json_is_a_schedule_or_refused(tmp_path: Path, content: Any) -> None:
    _read(tmp_path / "schedule.json", json.dumps(content).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    assert _read(tmp_path / "schedule.json", content) is None


@given(st.integers(1, 200_000), st.sampled_from(["[", '{"lambdas":', '{"provenance":{"a":', "-", "1", " "]))
def test_depth_and_length_are_refused_in_one_line(tmp_path: Path, count: int, piece: str) -> None:
    assert _read(tmp_path / "schedule.json", (piece * count).encode()) is None
