"""Random configurations of diffusers' schedulers: our schedule walks as the stock scheduler does, or says why not."""

from __future__ import annotations

import pytest

from benchmarks.diffusers_differential import compare
from fewstep.tasks.sampling.stock_walks import WALKS

# Classes whose stock grids start late, or whose clipping no schedule can say, need more draws for one that is equal.
DRAWS = 4


pytestmark = pytest.mark.usefixtures("unlogged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(WALKS))
def test_a_random_configuration_is_equal_or_refused_with_a_reason(name: str) -> None:
    row = compare(name, DRAWS, seed=11)
    assert not row["different_ones"]
    assert row.get("equal", 0) + row.get("refused", 0) == DRAWS
    assert all(row["reasons"])


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", "SCMScheduler"])
def test_what_draws_noise_or_is_not_known_is_refused(name: str) -> None:
    row = compare(name, 2, seed=11)
    assert row["refused"] == 2
