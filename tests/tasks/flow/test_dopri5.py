"""Steps of each image's own: torchdiffeq's decisions for each image alone, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.errors import EvaluationError
from fewstep.tasks.flow.dopri5 import integrate_each
from fewstep.tasks.flow.ode import OdeSettings, integrate, velocity_of_each
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import ContinuousVP

FLOW = FlowMatching()
V = "flow_prediction"


def _each(mixture: Any, y: Tensor, tolerance: float, ends: tuple[float, float] = (1.0, 0.0)) -> Any:
    velocity = velocity_of_each(mixture.on(FLOW, V), range(len(y)), FLOW, V, torch.float64)
    return integrate_each(velocity, y, *ends, tolerance, tolerance, 1000)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.9, 0.05), (0.3, 0.29)])
def test_it_is_torchdiffeqs_dopri5_for_each_image(
    tolerance: float, ends: tuple[float, float], two_bumps: Any, x64: Tensor
) -> None:
    y = torch.cat([x64, 5 * x64, 1e-9 * x64[:1], torch.zeros_like(x64[:1])])
    ours, calls = _each(two_bumps, y, tolerance, ends)
    settings = OdeSettings(atol=tolerance, rtol=tolerance)
    for i in range(len(y)):
        theirs, count = integrate(two_bumps.velocity, y[i : i + 1], ends, settings)
        torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-9, atol=1e-11)
        assert calls[i] == count
    assert ends[0] - ends[1] < 0.1 or len(set(calls)) > 1


def test_an_image_knows_nothing_of_its_batch(two_bumps: Any, x64: Tensor) -> None:
    y = torch.cat([x64, 4 * x64])
    whole, calls = _each(two_bumps, y, 1e-4)
    for order in ([5], [11, 0, 3], list(range(11, -1, -1))):
        part, counts = _each(two_bumps, y[order], 1e-4)
        assert torch.equal(part, whole[order])
        assert counts == [calls[i] for i in order]


def test_calls_are_what_was_called_and_the_ends_are_not_left(two_bumps: Any, x64: Tensor) -> None:
    _, calls = _each(two_bumps, x64, 1e-5)
    assert len(two_bumps.calls) == sum(calls)
    times = [time for _, time in two_bumps.calls]
    assert (min(times), max(times)) == (0, 1)


@pytest.mark.parametrize("noise", [ContinuousVP(), EDM(0.002, 80.0, 0.5), FlowMatching(1000.0, 3.0)])
def test_velocities_are_those_of_each_image_at_its_own_time(noise: Any, two_bumps: Any, x64: Tensor) -> None:
    output = V if isinstance(noise, FlowMatching) else "epsilon"
    t = torch.linspace(0.2, 0.8, len(x64), dtype=torch.float64)
    v = velocity_of_each(two_bumps.on(noise, output), range(len(x64)), noise, output, torch.float64)(
        x64, t, list(range(len(x64)))
    )
    exact = torch.cat([two_bumps.velocity(x64[i : i + 1], float(t[i])) for i in range(len(x64))])
    torch.testing.assert_close(v, exact, rtol=1e-9, atol=1e-9)


def test_it_gives_up_with_words() -> None:
    y = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(EvaluationError, match="more than 3 steps"):
        integrate_each(lambda y, t, rows: (30 * t[:, None]).cos() * y, y, 1.0, 0.0, 1e-10, 1e-10, 3)
    with pytest.raises(EvaluationError, match="explode"):
        integrate_each(lambda y, t, rows: y * torch.nan, y, 1.0, 0.0, 1e-3, 1e-3, 100)
