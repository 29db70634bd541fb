"""Half precision, layouts, compilation and int8 on an accelerator, against FP32 there, and FP32 there against the CPU.

    python -m benchmarks.accelerator [--device cuda] [--models fashion-ddpm large] [--images 250] [--out FOLDER]

Each model is sampled in this process from the same noise in every way that `Loading` knows. One JSON line each says the
denoiser calls a second (median of rounds after one that compiles and does not count) and how far the pixels, of -1 to
1, are from those of FP32 on the same device. `large` is a UNet2DModel of 64x64 pixels as wide as Stable Diffusion's,
with random weights: what it samples means nothing, its time does. `int8` runs the linear layers of a transformer in
integers by torchao. With --out the lines are written to FOLDER/accelerator.jsonl too.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._line import emit
from fewstep.errors import FewstepError
from fewstep.search_spaces.point import Point, as_point
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.loading import Loading
from fewstep.tasks.quantization.cuda import to_torchao
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.work import Subject, WorkerSettings
from fewstep.tasks.worker import Worker

PRESET, NFE, SEED = "dpmpp-2m/karras", 8, 0
LARGE, TRANSFORMER = "large", "transformer"
MODELS = ("fashion-ddpm", LARGE)
WAYS: dict[str, Loading] = {
    "float32": Loading(),
    "float32, compiled": Loading(compile=True),
    "float32, channels last": Loading(channels_last=True),
    "bfloat16": Loading(dtype="bfloat16"),
    "float16": Loading(dtype="float16"),
    "float16, channels last, compiled": Loading(dtype="float16", channels_last=True, compile=True),
}


@dataclass(frozen=True)
class Sampled:
    """Images (N, C, H, W), and denoiser calls a second."""

    images: Tensor
    calls: float


def synchronized(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, rounds: int) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(rounds):
        synchronized(device)
        begun = time.perf_counter()
        function()
        synchronized(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def sampled(model: str, device: str, way: Loading, images: int, rounds: int) -> Sampled:
    """Sample a model."""
    files = find_model(model)
    labels = "balanced" if files.classes is not None else "none"
    worker = Worker(WorkerSettings(Subject(model, loading=way, conditions=Conditions(labels=labels)), device))
    point: Point = as_point(preset_on_grid(PRESET, files.noise, NFE))
    took = seconds(lambda: worker.render(point, SEED, 0, images), device, rounds)
    return Sampled(worker.render(point, SEED, 0, images).float().cpu(), images * NFE / took)


def precision(name: str, model: str, device: str, images: int, rounds: int) -> None:
    """A line for each way of holding a model."""
    plain = sampled(model, device, WAYS["float32"], images, rounds)
    for way, loading in WAYS.items():
        try:
            found = plain if way == "float32" else sampled(model, device, loading, images, rounds)
        except (FewstepError, RuntimeError) as error:
            print(f"{name}, {way}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        apart = (found.images - plain.images).abs()
        errors = {"mean_pixel_error": float(apart.mean()), "largest_pixel_error": float(apart.max())}
        line(f"{name}, {way}", "float32", "denoiser calls/s", found.calls, plain.calls, device, images=images, **errors)
    if device != "cpu" and name != LARGE:
        cpu = sampled(model, "cpu", WAYS["float32"], images, 1)
        apart = (cpu.images - plain.images).abs()
        errors = {"mean_pixel_error": float(apart.mean()), "largest_pixel_error": float(apart.max())}
        line(f"{name}, float32", "CPU", "denoiser calls/s", plain.calls, cpu.calls, device, images=images, **errors)


def line(name: str, peer: str, unit: str, ours: float, theirs: float, device: str, **conditions: Any) -> None:
    """One JSON line, with the device's name."""
    device_name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    emit(f"accelerator/{name}", peer, unit, ours, theirs, {"device": device_name, **conditions})


@contextlib.contextmanager
def large_model(width: int) -> Iterator[str]:
    """The folder of a UNet2DModel of `width` channels at its widest pixels, with random weights."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=max(8, width // 8),
    )
    with tempfile.TemporaryDirectory() as folder:
        DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
        yield folder


def integers(device: str, width: int, rounds: int) -> None:
    """Linear layers of a transformer in int8 against bfloat16, both compiled."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    heads = max(2, width // 64)
    exact = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=64, num_layers=12, sample_size=32, in_channels=4, patch_size=2
    )
    for parameter in exact.parameters():
        nn.init.normal_(parameter, std=0.02)
    exact = exact.to(device, torch.bfloat16).eval()
    batch = 8
    told = torch.full((batch,), 500, device=device)
    asked = (torch.randn(batch, 4, 32, 32, device=device, dtype=torch.bfloat16), told, told % 1000)
    quantized = to_torchao(copy.deepcopy(exact))
    exact.compile()
    with torch.inference_mode():
        theirs = exact(*asked).sample.float()
        ours = quantized(*asked).sample.float()
        error = float((ours - theirs).pow(2).mean() / theirs.pow(2).mean())
        fast, plain = (batch / seconds(lambda m=m: m(*asked), device, rounds) for m in (quantized, exact))  # type: ignore[misc]
    line(TRANSFORMER + ", int8", "bfloat16", "denoiser calls/s", fast, plain, device, width=width, relative_error=error)


class Twice(io.TextIOBase):
    """What is printed is kept in a file too."""

    def __init__(self, *streams: Any) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        """Write it everywhere."""
        for stream in self._streams:
            stream.write(text)
            stream.flush()
        return len(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Every model in every way, then the integers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", help=f"names of models, or {LARGE} [{' '.join(MODELS)}; one on a CPU]")
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=320, help=f"channels of {LARGE}")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            kept = stack.enter_context((given.out / "accelerator.jsonl").open("w"))
            stack.enter_context(contextlib.redirect_stdout(Twice(sys.stdout, kept)))
        for model in given.models or (MODELS[:1] if given.device == "cpu" else MODELS):
            folder = stack.enter_context(large_model(given.width)) if model == LARGE else model
            count = max(1, given.images // 16) if model == LARGE else given.images
            precision(model, folder, given.device, count, given.rounds)
        try:
            integers(given.device, 4 * given.width, given.rounds)
        except FewstepError as error:
            print(f"int8: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
