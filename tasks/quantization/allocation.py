"""Bits by layer at the same mean: more for layers whose rounding changes the network's output more.

What rounding one layer to nearest does to the output is measured for each layer alone, in full precision elsewhere. It
falls by a factor of four with each bit (the grid's step halves), and what several layers do is taken to add up. The
least sum under a budget of bits is then found greedily, which is exact where each further bit gains less (Shoham and
Gersho, 1988). HAWQ-V2 (1911.03852) allots by such a sum too, with the trace of a Hessian in the place of what is
measured here. The fit that follows takes more away from a large change than from a small one, so the changes go into
the sum as their square roots; that power was chosen on the bundled digits and clothes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.search_spaces.quantization import FULL_PRECISION
from fewstep.tasks.quantization.affine import channel_grid
from fewstep.tasks.quantization.bits import ROWS, least_change
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.trajectories import Batch, batches

# Changes are measured at as many bits.
REFERENCE = 4
POWER = 0.5


@torch.no_grad()
def changes_by_layer(network: QuantizedNetwork, data: Batch, batch: int) -> dict[str, float]:
    """Mean square change of the output by layer, for all but the edges and the temporal information block.

    Of a network whose layers are switched off. Calls it (layers + 1) x ROWS times, counted by rows, at most.
    """
    rng = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data["x"]), generator=rng)[:ROWS].to(data["x"].device)
    rows = {name: value[chosen] for name, value in data.items()}
    exact, found = _outputs(network, rows, batch), dict[str, float]()
    for name in (name for name, plan in network.plans.items() if plan.role not in ("edge", "time")):
        layer = network.layers[name]
        original = layer.original
        assert original is not None
        grid = channel_grid(original, REFERENCE, search=True)
        layer.original = grid.values(grid.codes(original))
        change = (_outputs(network, rows, batch) - exact).double().square().mean()
        found[name] = float(change.nan_to_num(math.inf, math.inf))
        layer.original = original
    return found


def allot_bits(network: QuantizedNetwork, changes: Mapping[str, float]) -> None:
    """Give the layers of `changes` that have codes bits of their own, and round them to nearest.

    Edges and the temporal information block keep theirs.
    """
    mean = int(network.config.weight_bits)
    names = [name for name in changes if network.plans[name].bits != FULL_PRECISION]
    sizes = {name: math.prod(network.layers[name].shape) for name in names}
    for name, bits in least_change({name: changes[name] ** POWER for name in names}, sizes, mean).items():
        network.plans[name] = replace(network.plans[name], bits=bits)
        network.layers[name].bits = bits
        network.layers[name].round_to_nearest(network.config.weight_range == "search")


def _outputs(network: QuantizedNetwork, rows: Batch, batch: int) -> Tensor:
    call = caller(network.module)
    return torch.cat([call(**some) for some in batches(rows, batch)])
