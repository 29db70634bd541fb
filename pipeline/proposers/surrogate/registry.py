"""What ranks proposals, by name: the sequence encoder, an ensemble of it, or a stock regressor on a flat encoding.

All learn from the same examples and give scores (N, fidelities) of which lower is better. The regressors see the
steps' features side by side (padded with zeros to the longest schedule) and the NFE, and learn a value's rank among
those of its NFE as a normal score, each fidelity by itself: a schedule that explodes weighs no more than a bad one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from fewstep.errors import ConfigurationError
from fewstep.pipeline.proposers.surrogate.encoder import FEWEST, Example, RankingSurrogate, mean_tau

Features = Sequence[npt.NDArray[np.float32]]
Scores = npt.NDArray[np.float64]
MEMBERS = 5


class Surrogate(Protocol):
    """A ranking that is learned from examples."""

    @property
    def ready(self) -> bool:
        """Whether it has been fitted."""

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from everything evaluated; with too few examples it stays as it is."""

    def predict(self, features: Features) -> Scores:
        """Scores (N, fidelities), lower is better. Must be fitted."""

    def tau(self, examples: Sequence[Example], fidelity: int) -> float | None:
        """Kendall's tau on other examples; None where there are no pairs."""


class EnsembleSurrogate:
    """The mean of encoders that differ in their first weights and the order of their batches; `spread` is its doubt."""

    def __init__(self, fidelities: int, seed: int = 0, members: int = MEMBERS) -> None:
        self._members = [RankingSurrogate(fidelities, seed * MEMBERS + i) for i in range(members)]

    @property
    def ready(self) -> bool:
        """Whether it has been fitted."""
        return self._members[0].ready

    def fit(self, examples: Sequence[Example]) -> None:
        """Train every member."""
        for member in self._members:
            member.fit(examples)

    def predict(self, features: Features) -> Scores:
        """Mean scores (N, fidelities)."""
        return np.asarray(np.mean([m.predict(features) for m in self._members], axis=0))

    def spread(self, features: Features) -> Scores:
        """Standard deviation (N, fidelities) of the members' scores, each centred on its own mean."""
        scores = [m.predict(features) for m in self._members]
        return np.asarray(np.std([s - s.mean(0) for s in scores], axis=0))

    def tau(self, examples: Sequence[Example], fidelity: int) -> float | None:
        """See Surrogate."""
        return mean_tau(self.predict, examples, fidelity) if self.ready else None


class RegressionSurrogate:
    """One regressor of scikit-learn a fidelity."""

    def __init__(self, fidelities: int, make: Callable[[], Any]) -> None:
        self._fidelities, self._make = fidelities, make
        self._models: list[Any] = []
        self._longest = 0

    @property
    def ready(self) -> bool:
        """Whether it has been fitted."""
        return bool(self._models)

    def fit(self, examples: Sequence[Example]) -> None:
        """Fit every fidelity that has values enough; the others score by the one below."""
        from sklearn.exceptions import ConvergenceWarning

        if len(examples) < FEWEST:
            return
        self._longest = max(len(e.features) for e in examples)
        flat = self._flat([e.features for e in examples])
        nfes = np.array([e.nfe for e in examples])
        models = []
        values = np.array([e.values for e in examples], np.float64)
        for fidelity in range(self._fidelities):
            known = np.isfinite(values[:, fidelity])
            targets = np.zeros(len(examples))
            for nfe in np.unique(nfes[known]):
                rows = known & (nfes == nfe)
                targets[rows] = norm.ppf((rankdata(values[rows, fidelity]) - 0.5) / rows.sum())
            if known.sum() >= FEWEST:
                with warnings.catch_warnings():
                    # A length or noise at its bound is an answer too.
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    models.append(self._make().fit(flat[known], targets[known]))
            elif models:
                models.append(models[-1])
            else:
                return
        self._models = models

    def predict(self, features: Features) -> Scores:
        """Scores (N, fidelities)."""
        assert self._models, "fit before predict"
        flat = self._flat(features)
        return np.stack([np.asarray(m.predict(flat), np.float64) for m in self._models], axis=1)

    def tau(self, examples: Sequence[Example], fidelity: int) -> float | None:
        """See Surrogate."""
        return mean_tau(self.predict, examples, fidelity) if self.ready else None

    def _flat(self, features: Features) -> npt.NDArray[np.float64]:
        width = features[0].shape[1]
        rows = np.zeros((len(features), self._longest * width + 1))
        for row, steps in zip(rows, features, strict=True):
            some = steps[: self._longest]
            row[: some.size] = some.ravel()
            row[-1] = len(steps)
        return rows


def _trees(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=150, min_samples_leaf=5, random_state=seed)


def _forest(seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.4, random_state=seed)


def _gaussian_process(seed: int) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kernel = ConstantKernel(1.0) * RBF(10.0, (1.0, 100.0)) + WhiteKernel(0.1, (1e-3, 1.0))
    return make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed))


def make_surrogate(name: str, fidelities: int, seed: int) -> Surrogate:
    """The surrogate of that name; ConfigurationError for one that there is not."""
    makers: dict[str, Callable[[], Surrogate]] = {
        "encoder": lambda: RankingSurrogate(fidelities, seed),
        "ensemble": lambda: EnsembleSurrogate(fidelities, seed),
        "trees": lambda: RegressionSurrogate(fidelities, lambda: _trees(seed)),
        "forest": lambda: RegressionSurrogate(fidelities, lambda: _forest(seed)),
        "gp": lambda: RegressionSurrogate(fidelities, lambda: _gaussian_process(seed)),
    }
    if name not in makers:
        raise ConfigurationError(f"unknown surrogate {name!r}: choose one of {', '.join(makers)}")
    return makers[name]()
