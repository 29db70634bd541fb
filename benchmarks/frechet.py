"""Frechet distance at 2,048 dimensions: ours, with the reference's root kept, against pytorch-fid's.

    python -m benchmarks.frechet [--threads 1] [--repeats 3]

Both get the same means and covariances, taken from 10,000 feature vectors a side that look like Inception's:
not negative, skewed, correlated, with a covariance spectrum that decays over several decades. Exits with 1
where ours is less than 5 times as fast or the values differ by more than 1e-6 relative.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks._line import emit, median_seconds
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.moments import Array, Moments
from fewstep.tasks.metrics.scipy_compat import pytorch_fid_distance

DIM = 2048
IMAGES = 10_000
MIN_SPEEDUP = 5.0
MAX_DIFFERENCE = 1e-6


def inception_like(mixing: Array, seed: int, tilt: float) -> Array:
    """Features (IMAGES, DIM); `tilt` shifts the mean and changes the spectrum by that share."""
    latent = np.random.default_rng(seed).standard_normal((IMAGES, DIM))
    scale = np.arange(1, DIM + 1) ** -0.6 * (1.0 + tilt * np.sin(np.arange(DIM)))
    return np.asarray(np.logaddexp(0.0, (latent * scale + tilt * scale) @ mixing))


def main() -> int:
    """Time both, print the line and say whether the claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1, help="threads of the linear algebra, for both sides")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls a side; the median counts")
    options = parser.parse_args()

    with threadpool_limits(options.threads):
        mixing = np.random.default_rng(0).standard_normal((DIM, DIM)) / 8.0
        real, fake = (Moments.of(inception_like(mixing, seed, tilt)) for seed, tilt in ((1, 0.0), (2, 0.2)))
        mu, sigma, mu_r, sigma_r = fake.mean, fake.covariance, real.mean, real.covariance

        build_seconds = median_seconds(lambda: FrechetReference(mu_r, sigma_r), repeats=1, warmup=0)
        reference = FrechetReference(mu_r, sigma_r)
        ours = median_seconds(lambda: reference.distance(mu, sigma), options.repeats)

        values: list[float] = []
        theirs = median_seconds(
            lambda: values.append(pytorch_fid_distance(mu, sigma, mu_r, sigma_r)), options.repeats, warmup=0
        )
    value = reference.distance(mu, sigma)
    difference = abs(value - values[-1]) / abs(values[-1])
    spectrum = np.linalg.eigvalsh(sigma_r)
    emit(
        "frechet",
        "pytorch-fid calculate_frechet_distance",
        "seconds a distance",
        ours,
        theirs,
        {
            "dim": DIM,
            "images": IMAGES,
            "condition_number": float(f"{spectrum[-1] / spectrum[0]:.3g}"),
            "value_ours": value,
            "value_theirs": values[-1],
            "relative_difference": difference,
            "reference_root_seconds_once": build_seconds,
            "threads": options.threads,
            "repeats": options.repeats,
        },
    )
    return 0 if theirs >= MIN_SPEEDUP * ours and difference <= MAX_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
