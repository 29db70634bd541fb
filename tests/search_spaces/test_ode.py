"""ODE solvers as data: exact JSON, addresses of their own, words for what cannot be."""

from __future__ import annotations

import math

import pytest

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.ode import OdeSettings, parse_ode, parse_sampler, with_guidance
from fewstep.search_spaces.schedule.presets import preset

SOLVERS = [
    OdeSettings(),
    OdeSettings(atol=1e-3, rtol=0.1),
    OdeSettings(guidance=0.0),
    OdeSettings("euler", 3),
    OdeSettings("euler", 3, guidance=1.5),
    OdeSettings("heun", times=(1.0, 0.1 + 0.2, 0.0)),
]


def test_json_reads_back_and_every_setting_counts() -> None:
    assert [parse_sampler(s.to_json()) for s in SOLVERS] == SOLVERS
    assert len({s.hash for s in SOLVERS}) == len(SOLVERS)
    schedule = preset("ddim", [-2.0, 0.0, math.inf])
    assert parse_sampler(schedule.to_json()) == schedule


def test_guidance_is_part_of_either_sampler() -> None:
    for sampler in (OdeSettings(), preset("ddim", [-2.0, 0.0, math.inf])):
        guided = with_guidance(sampler, 1.5)
        assert guided.guidance == 1.5
        assert guided.hash != sampler.hash
        assert with_guidance(guided, None).hash == sampler.hash


def test_the_command_lines_names() -> None:
    assert parse_ode("dopri5", 1e-4, 1e-3) == OdeSettings(atol=1e-4, rtol=1e-3)
    for text in ("euler@5", "heun@6", "midpoint@2"):
        assert parse_ode(text).name == text
        assert parse_ode(text).nfe == int(text.partition("@")[2])


@pytest.mark.parametrize(
    ("text", "words"),
    [("rk4", "dopri5, euler"), ("dopri5@6", "its own calls"), ("heun@5", "multiple of 2"), ("euler", "euler@CALLS")],
)
def test_wrong_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_ode(text)


@pytest.mark.parametrize("text", ['{"ode": {"method": "rk4"}}', '{"ode": {"colour": 1}}', '{"ode": 3}', '{"ode"'])
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="ODE solver"):
        parse_sampler(text)
