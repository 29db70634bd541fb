"""The W2 bound where the truth is known, the closed forms it is made of, and the forms of it that do not hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fewstep.errors import ConfigurationError
from fewstep.tasks.flow.bound import W2Bound, profile_latent
from fewstep.tasks.flow.linear_case import LinearCase, LinearDecoder
from fewstep.tasks.flow.mixture import Affine, LatentMixture, Perturbation, Wave
from fewstep.tasks.flow.tightness import Tightness, random_case, tightness

TWO = LatentMixture([0.3, 0.7], [[-0.9], [0.8]], [0.35])
PLANE = LatentMixture([0.2, 0.5, 0.3], [[-0.9, 0.1], [0.8, 0.4], [0.2, -1.0]], [0.35, 0.8])
IDENTITY = LinearDecoder(np.eye(1), np.zeros(1))


@pytest.fixture(scope="module")
def rows() -> list[Tightness]:
    return tightness(100)


def test_the_bound_holds_for_random_cases(rows: list[Tightness]) -> None:
    """100 mixtures, decoders and perturbed fields; each refinement lies between the truth and the one before."""
    assert {row.dimensions for row in rows} == {1, 2, 3, 4}
    assert {row.components for row in rows} == {2, 3, 4}
    for row in rows:
        assert row.holds
        assert 0 < row.truth <= row.profile * (1 + 1e-6), row
        assert row.profile <= row.sharp * (1 + 2e-3), row  # a sum over cells, from above
        assert row.sharp <= row.bound, row


def test_the_bound_is_tight_somewhere_and_loose_elsewhere(rows: list[Tightness]) -> None:
    bound = sorted(row.bound / row.truth for row in rows)
    profile = sorted(row.profile / row.truth for row in rows)
    assert bound[0] < 1.1
    assert bound[-1] > 1000
    assert profile[50] < 2
    assert profile[-1] < 0.001 * bound[-1]


@pytest.mark.parametrize("seed", range(0, 12))
def test_a_perfect_model_is_at_distance_zero(seed: int) -> None:
    case = random_case(seed)
    D = case.latents.dim
    nothing = Affine(np.zeros((D, D)), np.zeros(D))
    perfect = LinearCase(case.latents, LinearDecoder(case.decoder.W, np.zeros(len(case.decoder.W))), nothing)
    bound = perfect.bound()
    assert bound.value == bound.sharp == perfect.profile_bound() == 0
    # The flow carries the noise to the latents, by an ODE solver on one side and a root finder on the other.
    assert perfect.true_w2() < 1e-5


def test_a_perfect_flow_leaves_the_reconstruction() -> None:
    decoder = LinearDecoder(np.array([[2.0], [0.0]]), np.array([0.0, 0.3]), np.diag([0.0, 0.16]))
    case = LinearCase(TWO, decoder, Affine([[0.0]], [0.0]))
    assert case.bound().value == pytest.approx(math.sqrt(0.16 + 0.09))
    assert case.true_w2() == pytest.approx(0.5, rel=1e-6)


def test_the_two_ways_to_the_truth_agree() -> None:
    latents = LatentMixture([1.0], [[0.7]], [0.5])
    decoder = LinearDecoder(np.array([[1.5], [0.4]]), np.array([0.1, -0.2]))
    case = LinearCase(latents, decoder, Affine([[0.2]], [-0.3]))
    assert case.by_quantiles() == pytest.approx(case.by_moments(), rel=1e-6)
    # A constant error b of a unit Gaussian, where c = (log V)' / 2, shifts the samples by -b int dt / sqrt(V).
    unit = LinearCase(LatentMixture([1.0], [[0.0]], [1.0]), IDENTITY, Affine([[0.0]], [0.4]))
    t = (np.arange(100_000) + 0.5) / 100_000
    assert unit.true_w2() == pytest.approx(0.4 * np.mean(1 / np.sqrt((1 - t) ** 2 + t**2)), rel=1e-6)


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_distances_of_products_add(seed: int) -> None:
    """With one component the parts are Gaussians, and so is the whole; the first latent's flow is its own."""
    case = random_case(seed)
    z = case.latents
    single = LinearCase(LatentMixture([1.0], z.means[:1], z.stds), case.decoder, case.error)
    assert case.separates
    assert single.by_parts() == pytest.approx(single.by_moments(), rel=1e-5)
    x = np.random.default_rng(1).standard_normal((20, z.dim))
    alone = LatentMixture(z.weights, z.means[:, :1], z.stds[:1])
    np.testing.assert_allclose(z.velocity(x, 0.3)[:, 0], alone.velocity(x[:, :1], 0.3)[:, 0], rtol=1e-10)
    turned = Affine(np.ones((z.dim, z.dim)), np.zeros(z.dim))
    assert not LinearCase(z, case.decoder, turned).separates


def test_squares_do_not_add() -> None:
    """A decoder off by 20 in the direction of the velocity's error: W2^2 <= r^2 + L_D^2 exp(1 + 2 L) error is false."""
    latents = LatentMixture([1.0], [[0.0]], [1.0])
    # b > 0 carries the samples down, so the decoder is off downwards.
    case = LinearCase(latents, LinearDecoder(np.eye(1), np.array([-20.0])), Affine([[0.0]], [0.4]))
    bound = case.bound()
    assert bound.velocity == pytest.approx(1, rel=1e-2)
    assert bound.root_of_squares < case.true_w2() <= case.profile_bound() <= bound.sharp <= bound.value
    assert case.true_w2() <= math.sqrt(2) * bound.root_of_squares


def test_the_lipschitz_constant_is_the_learned_fields() -> None:
    """With the true field's constant in its place the factor is too small for an error that stretches."""
    latents = LatentMixture([1.0], [[0.0]], [1.0])
    case = LinearCase(latents, IDENTITY, Affine([[-4.0]], [0.0]))
    bound = case.bound()
    true_field = W2Bound(bound.reconstruction, bound.decoder, bound.velocity - 4.0, bound.error)
    assert true_field.value < case.true_w2() <= bound.value


@pytest.mark.parametrize("t", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("latents", [TWO, PLANE])
def test_the_velocity_is_the_conditional_mean(latents: LatentMixture, t: float) -> None:
    """It carries p_t along: d/dt E f = E <v, grad f> for f = sin(omega x)."""
    omega, h = np.full(latents.dim, 0.9), 1e-4
    ends = [min(1.0, max(0.0, u)) for u in (t - h, t + h)]
    sines = [latents.mean_cosine(omega, -math.pi / 2, u) for u in ends]
    x, weights = _points_of(latents, t)
    flux = weights @ ((latents.velocity(x, t) @ omega) * np.cos(x @ omega))
    assert flux == pytest.approx((sines[1] - sines[0]) / (ends[1] - ends[0]), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.9])
@pytest.mark.parametrize(
    "error",
    [Affine([[0.3, -0.2], [0.1, 0.5]], [0.4, -0.1]), Wave([0.3, -0.5], [1.2, 0.7], 0.4)],
)
def test_mean_squares_are_exact(error: Perturbation, t: float) -> None:
    x, weights = _points_of(PLANE, t)
    assert error.mean_square(PLANE, t) == pytest.approx(weights @ np.sum(error(x) ** 2, 1), rel=1e-8)


def _points_of(latents: LatentMixture, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite points and weights of p_t."""
    z, w = np.polynomial.hermite_e.hermegauss(60)
    D = latents.dim
    grid = np.array(list(itertools.product(z, repeat=D)))
    each = np.prod(np.array(list(itertools.product(w, repeat=D))), axis=1) / math.sqrt(2 * math.pi) ** D
    x = [(1 - t) * m + np.sqrt(latents.variance(t)) * grid for m in latents.means]
    return np.concatenate(x), np.concatenate([share * each for share in latents.weights])


@pytest.mark.parametrize("latents", [TWO, PLANE, LatentMixture([1.0], [[0.3]], [1.4])])
def test_the_jacobian_stays_within_its_range(latents: LatentMixture) -> None:
    cells, h = 200, 1e-5
    lower, upper = latents.jacobian_range(cells)
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (400, latents.dim))
    seen = np.empty((cells, 2))
    for i in range(cells):
        t = (i + rng.random()) / cells
        steps = h * np.eye(latents.dim)
        J = np.stack([(latents.velocity(x + e, t) - latents.velocity(x - e, t)) / (2 * h) for e in steps], -1)
        np.testing.assert_allclose(J, np.swapaxes(J, 1, 2), atol=1e-5)
        values = np.linalg.eigvalsh(J)
        seen[i] = values.min(), values.max()
    assert (lower <= seen[:, 0] + 1e-5).all()
    assert (seen[:, 1] <= upper + 1e-5).all()
    if latents.dim == 1:
        # Attained, up to the cells' width: two components of one variance, or one component.
        assert np.abs(lower - seen[:, 0]).max() < 0.06 * np.abs(lower).max()
        assert np.abs(upper - seen[:, 1]).max() < 0.06 * np.abs(upper).max()


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 3.0])
def test_the_constant_of_a_gaussian(std: float) -> None:
    """max |t - (1 - t) s^2| / ((1 - t)^2 s^2 + t^2) over t in [0, 1] is (s + 1 / s) / 2."""
    lower, upper = LatentMixture([1.0], [[0.4]], [std]).jacobian_range(4000)
    found = max(np.abs(lower).max(), np.abs(upper).max())
    exact = 0.5 * (std + 1 / std)
    assert exact <= found <= 1.01 * exact


def test_quantiles_invert_the_distribution() -> None:
    z = np.linspace(-8, 8, 101)
    x = TWO.quantiles(z)
    means, std = TWO.means[:, 0], TWO.stds[0]
    below = sum(w * stats.norm.cdf(x, m, std) for w, m in zip(TWO.weights, means, strict=True))
    above = sum(w * stats.norm.sf(x, m, std) for w, m in zip(TWO.weights, means, strict=True))
    np.testing.assert_allclose(below[z <= 0], stats.norm.cdf(z[z <= 0]), rtol=1e-9)
    np.testing.assert_allclose(above[z >= 0], stats.norm.sf(z[z >= 0]), rtol=1e-9)


def test_extreme_terms() -> None:
    """No overflow, no 0 times infinity; the limit of small L."""
    huge = W2Bound(0.1, 2.0, 2000.0, 0.5)
    assert huge.value == huge.sharp == math.inf
    assert huge.log10 == pytest.approx(2000.5 / math.log(10) + math.log10(2 * math.sqrt(0.5)))
    assert W2Bound(0.1, 2.0, 2000.0, 0.0).value == W2Bound(0.1, 0.0, 2000.0, 5.0).value == 0.1
    assert W2Bound(0.0, 1.0, 0.0, 0.25).sharp == 0.5
    assert W2Bound(0.0, 1.0, 1e-9, 0.25).sharp == pytest.approx(0.5)
    assert W2Bound(0.0, 1.0, 0.0, 0.0).log10 == -math.inf
    assert W2Bound(0.0, 2.0, 1.0, 0.0, smoothing=0.1).value == pytest.approx(0.2)
    assert profile_latent(np.full(10, 1e4), np.ones(10)) == math.inf
    assert profile_latent(np.full(10, 1e4), np.zeros(10)) == 0
    fine = profile_latent(np.full(20_000, 1.5), np.full(20_000, 0.04))
    assert fine == pytest.approx(0.2 * math.expm1(1.5) / 1.5, rel=1e-3)


def test_wrong_cases_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="velocity = -1"):
        W2Bound(0.1, 1.0, -1.0, 0.1)
    with pytest.raises(ConfigurationError, match="shapes of weights"):
        LatentMixture([1.0], [[0.0], [1.0]], [1.0])
    with pytest.raises(ConfigurationError, match="positive"):
        LatentMixture([1.0], [[0.0]], [0.0])
    with pytest.raises(ConfigurationError, match="R W = 0"):
        LinearDecoder(np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(ConfigurationError, match="shapes of W"):
        LinearDecoder(np.eye(2), np.zeros(3))
    with pytest.raises(ConfigurationError, match="one dimension"):
        PLANE.quantiles(np.zeros(1))
    with pytest.raises(ConfigurationError, match="true distance"):
        LinearCase(PLANE, LinearDecoder(np.eye(2), np.zeros(2)), Affine(np.eye(2), np.zeros(2))).true_w2()
