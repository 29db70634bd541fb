"""The closed-form velocity of a finite data set's latents, and errors measured against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow import posteriors
from fewstep.tasks.flow.estimate import flow_matching_loss, mean_over, velocity_errors
from fewstep.tasks.flow.lipschitz import growth_rates
from fewstep.tasks.flow.mixture import LatentMixture
from fewstep.tasks.flow.posteriors import Posteriors, exact_fields


def law(count: int = 7, std: float | None = None) -> Posteriors:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(count, 2, 2, 1, generator=g, dtype=torch.float64)
    spread = torch.rand(count, 2, 2, 1, generator=g, dtype=torch.float64) + 0.2
    return Posteriors(means, spread if std is None else torch.full_like(spread, std))


def points(count: int = 5) -> Tensor:
    return torch.randn(count, 2, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.6, 1.0])
def test_it_is_a_mixtures_velocity(t: float) -> None:
    known = law(std=0.4)
    mixture = LatentMixture(np.ones(7), known.means.numpy(), np.full(4, 0.4))
    theirs = mixture.velocity(points().flatten(1).numpy(), t)
    np.testing.assert_allclose(known.velocity(points(), t).flatten(1).numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_it_follows_from_the_score(t: float) -> None:
    """E[z1 | x] = -t s for the score s, and x = a E[z0 | x] + t E[z1 | x], for components of any widths."""
    known, a = law(), 1 - t
    x = points().requires_grad_(True)
    V = (a * a * known.variances + t * t)[None]
    r = x.flatten(1)[:, None] - a * known.means
    (s,) = torch.autograd.grad(torch.logsumexp(-0.5 * (r * r / V + V.log()).sum(-1), 1).sum(), x)
    expected = -t * s - (x + t * t * s) / a
    torch.testing.assert_close(known.velocity(x.detach(), t), expected.detach(), rtol=1e-9, atol=1e-10)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = law().velocity(points(), 0.3)
    monkeypatch.setattr(posteriors, "CHUNK", 3)
    torch.testing.assert_close(law().velocity(points(), 0.3), whole)


def test_points_far_from_all_data_are_no_trouble() -> None:
    v = law(std=0.0).velocity(1e3 * points(), 0.01)
    assert torch.isfinite(v).all()


def test_each_image_has_the_law_of_its_label() -> None:
    laws = {0: law(), 1: law(std=0.5)}
    fields = exact_fields(laws, lambda i: i % 2)
    x = points(4)
    found = fields([3, 4, 6, 9])(x, 0.4)
    for place, label in enumerate((1, 0, 0, 1)):
        torch.testing.assert_close(found[place : place + 1], laws[label].velocity(x[place : place + 1], 0.4))


def test_the_error_is_what_the_losses_differ_by() -> None:
    """E|v_hat - u|^2 - E|v - u|^2 = E|v_hat - v|^2, for latents of the law; and a constant error is found exactly."""
    known = law()
    g = torch.Generator().manual_seed(3)
    k = torch.randint(0, 7, (6000,), generator=g)
    noise = torch.randn(6000, 4, generator=g, dtype=torch.float64)
    latents = (known.means[k] + known.variances[k].sqrt() * noise).reshape(-1, 2, 2, 1)
    exact = exact_fields({None: known}, lambda _: None)

    def learned(indices: object) -> object:
        return lambda x, t: known.velocity(x, t) + 0.5

    cells = velocity_errors(learned, exact, latents, times=10, batch=600)  # type: ignore[arg-type]
    error = mean_over(cells)
    assert error.value == pytest.approx(4 * 0.25)
    assert [float(cell.mean()) for cell in cells] == pytest.approx([1.0] * 10)
    _, excess = flow_matching_loss(learned, latents, times=10, batch=600, other=exact)  # type: ignore[arg-type]
    assert excess is not None
    assert excess.value == pytest.approx(error.value, abs=2 * (excess.value - excess.low))


def test_growth_rates_are_eigenvalues() -> None:
    g = torch.Generator().manual_seed(2)
    A = torch.randn(12, 12, dtype=torch.float64, generator=g)
    x = torch.randn(3, 12, dtype=torch.float64, generator=g)
    largest = float(torch.linalg.eigvalsh(-0.5 * (A + A.T))[-1])
    found = [growth_rates(lambda v: v @ A.T, x, [0, 1, 2], 0, n) for n in (1, 5, 12, 30)]
    assert torch.all(found[0] <= found[1])
    assert torch.all(found[1] <= largest + 1e-12)
    torch.testing.assert_close(found[2], torch.full((3,), largest, dtype=torch.float64))
    torch.testing.assert_close(found[3], found[2])
    # A space that is exhausted at once adds no zero: everything contracts at rate 2.
    torch.testing.assert_close(growth_rates(lambda v: 2 * v, x, [0, 1, 2], 0, 5), -2 * torch.ones(3).double())
    assert float(growth_rates(torch.zeros_like, x, [0, 1, 2], 0).max()) == 0


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="equal shapes"):
        Posteriors(torch.zeros(3, 2), torch.ones(2, 2))
    with pytest.raises(ConfigurationError, match="equal shapes"):
        Posteriors(torch.zeros(0, 2), torch.ones(0, 2))
    with pytest.raises(ConfigurationError, match="at least one vector"):
        growth_rates(lambda v: v, torch.zeros(1, 2), [0], 0, 0)
