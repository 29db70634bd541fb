"""A learned ranking of schedules: which of two is better, without sampling from either.

A recurrent encoder reads the steps (N, L, F), its mean over the steps goes through a small MLP to one
score a fidelity; the loss is a pairwise hinge on pairs of equal NFE (S^3, USF section 4; the network
follows OMS-DPM, 2306.08860). Lower scores are better, as for the distances they rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

HIDDEN = 32
MARGIN = 1.0
BATCH = 96
FEWEST = 16


@dataclass(frozen=True)
class Example:
    """Features (L, F) of one evaluated schedule, its NFE, and its value at each fidelity (NaN: not known)."""

    features: npt.NDArray[np.float32]
    nfe: int
    values: tuple[float, ...]


class _Encoder(nn.Module):
    def __init__(self, features: int, fidelities: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, HIDDEN), nn.SiLU())
        self.recurrent = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, fidelities))

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """Scores (N, fidelities) from steps (N, L, F) and mask (N, L)."""
        states, _ = self.recurrent(self.embed(steps))
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.as_tensor(self.head(mean))


def _stack(features: Sequence[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    longest = max(len(f) for f in features)
    steps = np.zeros((len(features), longest, features[0].shape[1]), np.float32)
    mask = np.zeros((len(features), longest), np.float32)
    for row, entry in enumerate(features):
        steps[row, : len(entry)] = entry
        mask[row, : len(entry)] = 1.0
    return torch.from_numpy(steps), torch.from_numpy(mask)


def pairwise_hinge(scores: Tensor, values: Tensor, groups: Tensor) -> Tensor:
    """Mean of max(0, MARGIN - (s_b - s_a)) over pairs of one group where a is clearly better than b.

    scores and values are (N,), values NaN where unknown; groups (N,). A pair counts where the log of the
    values differs by more than 2%.
    """
    better = (values[None, :] - values[:, None]) > 0.02
    better &= groups[None, :] == groups[:, None]
    margin = scores[None, :] - scores[:, None]
    losses = torch.relu(MARGIN - margin)[better]
    return losses.mean() if losses.numel() else scores.sum() * 0.0


def warm_up() -> None:
    """Make PyTorch import its compiler, which the first optimiser does (seconds), before a search is timed."""
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def mean_tau(
    predict: Callable[[Sequence[npt.NDArray[np.float32]]], npt.NDArray[np.float64]],
    examples: Sequence[Example],
    fidelity: int,
) -> float | None:
    """Kendall's tau of predicted scores against values, averaged over NFE; None where there are no pairs."""
    taus, weights = [], []
    for nfe in sorted({e.nfe for e in examples}):
        group = [e for e in examples if e.nfe == nfe and np.isfinite(e.values[fidelity])]
        if len(group) >= 3:
            scores = predict([e.features for e in group])[:, fidelity]
            tau = kendalltau(scores, [e.values[fidelity] for e in group]).statistic
            if np.isfinite(tau):
                taus.append(float(tau))
                weights.append(len(group))
    return float(np.average(taus, weights=weights)) if taus else None


class RankingSurrogate:
    """Trained from scratch at every fit, so that it is a function of its examples and its seed."""

    def __init__(self, fidelities: int, seed: int = 0, steps: int = 200) -> None:
        self.fidelities, self.seed, self.steps = fidelities, seed, steps
        self._model: _Encoder | None = None

    @property
    def ready(self) -> bool:
        """Whether it has been fitted."""
        return self._model is not None

    def fit(self, examples: Sequence[Example]) -> None:
        """Train on everything evaluated; with fewer than FEWEST examples it stays as it is."""
        if len(examples) < FEWEST:
            return
        with torch.random.fork_rng(devices=[]), np.errstate(divide="ignore"):
            torch.manual_seed(self.seed)
            model = _Encoder(examples[0].features.shape[1], self.fidelities)
            steps, mask = _stack([e.features for e in examples])
            values = torch.from_numpy(np.log(np.array([e.values for e in examples], np.float64)))
            groups = torch.tensor([e.nfe for e in examples])
            optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=1e-3)
            for step in range(self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = 6e-3 * (1 - step / self.steps)
                rows = torch.randperm(len(examples))[:BATCH]
                scores = model(steps[rows], mask[rows]).double()
                loss = sum(pairwise_hinge(scores[:, f], values[rows, f], groups[rows]) for f in range(self.fidelities))
                optimizer.zero_grad(set_to_none=True)
                torch.as_tensor(loss).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        self._model = model.eval()

    @torch.inference_mode()
    def predict(self, features: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        """Scores (N, fidelities), lower is better. Must be fitted."""
        assert self._model is not None, "fit before predict"
        return np.asarray(self._model(*_stack(features)).double().numpy(), np.float64)

    def tau(self, examples: Sequence[Example], fidelity: int) -> float | None:
        """Kendall's tau on other examples; None before a fit, and where there are no pairs."""
        return mean_tau(self.predict, examples, fidelity) if self.ready else None
