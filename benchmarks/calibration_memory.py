"""Memory of a calibration of large networks: what is said before it begins against what it takes.

    python -m benchmarks.calibration_memory [--shape sd15|dit-xl-2|ldm-4] [--batches 2] [--images 128] [--calls 8]

Networks of diffusers with the sizes of Stable Diffusion 1.5 (with guidance), DiT-XL/2 (256 x 256, with guidance) and
LDM-4 (CelebA-HQ), and random weights. In a process of its own each is made and wrapped, and its dearest layer is
calibrated by the default config: targets in full precision on disk, passes of whole batches up to that layer, its fit.
All other layers take less, one after the other, so that `measured`, the peak of that process, is the peak of the
calibration on so few rows. `forecast` is what the product says of these rows. `whole` is what it says of a calibration
on `images` along a schedule of `calls`: what is added are its inputs.

One JSON line a shape: `ratio` is measured / forecast. Exits with 1 where more is taken than was said and a process that
did nothing takes, or where a whole calibration is said to take more than 24 GiB.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._line import afresh, emit
from fewstep.search_spaces.quantization import named
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.memory import LivePeak, batch_for, forecast
from fewstep.tasks.quantization.network import QuantizedNetwork, caller
from fewstep.tasks.quantization.sequential import Sequential

CONFIG, GIB, MOST, TIMES = "w4a8-mixed-full", 2**30, 24, 1000


def _sd15() -> nn.Module:
    from diffusers import UNet2DConditionModel

    network: nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return network


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    network: nn.Module = DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000, activation_fn="gelu-approximate",
    )  # fmt: skip
    return network


def _ldm() -> nn.Module:
    from diffusers import UNet2DModel

    attention = "AttnDownBlock2D", "AttnUpBlock2D"
    network: nn.Module = UNet2DModel(
        sample_size=64, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(224, 448, 672, 896),
        down_block_types=("DownBlock2D", *3 * attention[:1]), up_block_types=(*3 * attention[1:], "UpBlock2D"),
        attention_head_dim=32,
    )  # fmt: skip
    return network


# The network, rows that it sees for an image, and its inputs by name: shapes of one row, or how many labels.
SHAPES: Mapping[str, tuple[Callable[[], nn.Module], int, Mapping[str, tuple[int, ...] | int]]] = {
    "sd15": (_sd15, 2, {"x": (4, 64, 64), "condition": (77, 768)}),
    "dit-xl-2": (_dit, 2, {"x": (4, 32, 32), "labels": 1001}),
    "ldm-4": (_ldm, 1, {"x": (3, 64, 64)}),
}


def inputs(shape: str, rows: int) -> dict[str, Tensor]:
    """Random inputs of so many rows: times (R,), and whatever the network is given."""
    data = {"time": torch.rand(rows) * (TIMES - 1)}
    for name, size in SHAPES[shape][2].items():
        data[name] = torch.randint(0, size, (rows,)) if isinstance(size, int) else torch.randn(rows, *size)
    return data


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(shape: str, batches: int, images: int, calls: int) -> dict[str, Any]:
    """Both, in this process; bytes."""
    torch.manual_seed(0)
    idle = _resident()
    module = SHAPES[shape][0]().eval().requires_grad_(False)
    example = inputs(shape, 1)
    parameters = sum(p.numel() for p in module.parameters())
    with torch.no_grad(), LivePeak() as live:
        caller(module)(**example)
    batch = batch_for(live.peak)
    network = QuantizedNetwork.wrap(module, named(CONFIG), example)
    rows, whole_rows = batches * batch, images * calls * SHAPES[shape][1]
    said = forecast(network, example, rows, batch, TIMES)
    whole = forecast(network, example, whole_rows, batch, TIMES)
    Sequential(network, inputs(shape, rows), Kept(None), batch).fit_layers([said.largest_layer], lambda: None)
    return {
        "measured": _resident(), "idle": idle, "forecast": said.peak, "whole": whole.peak, "disk": whole.disk,
        "batch": batch, "rows": rows, "layer": said.largest_layer, "parts": vars(said),
        "parameters": parameters,
    }  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one of them [all]")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--calls", type=int, default=8)
    given = parser.parse_args()
    kept = True
    for shape in [given.shape] if given.shape else SHAPES:
        found = afresh(measure, shape, given.batches, given.images, given.calls)
        taken, said = (found.pop(name) / GIB for name in ("measured", "forecast"))
        idle, whole, disk = (found.pop(name) / GIB for name in ("idle", "whole", "disk"))
        found["parts"] = {n: round(v / GIB, 3) for n, v in found["parts"].items() if isinstance(v, int)}
        conditions = {
            "shape": shape, "config": CONFIG, "idle_gib": round(idle, 2), "whole_gib": round(whole, 2),
            "whole_disk_gib": round(disk, 2), "images": given.images, "calls": given.calls, **found,
        }  # fmt: skip
        emit("calibration memory", "forecast", "GiB", round(taken, 3), round(said, 3), conditions)
        kept = kept and taken <= said + idle and whole <= MOST
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
