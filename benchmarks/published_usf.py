"""The published USF sampler as a peer: loaded from a path, set up on the CPU with statistics of a real one's size.

Its program (the folder that holds uni_sampler/uni_sampler.py) is never a part of this project; it always wants
DPM-Solver-v3 statistics and a mean image on disk, and puts the statistics on a CUDA device.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STATISTICS_POINTS = 200


def load(path: Path) -> Any:
    """The module uni_sampler.py below `path`; SystemExit with one line where there is none."""
    found = sorted(path.glob("**/uni_sampler/uni_sampler.py")) if path.is_dir() else []
    if not found:
        sys.exit(f"--usf-path {path}: no uni_sampler/uni_sampler.py below it")
    spec = importlib.util.spec_from_file_location("published_uni_sampler", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def second_order_sampler(module: Any, x: Tensor, eps: Tensor, steps: int) -> Callable[[], Tensor]:
    """One run of `steps` steps of DPM-Solver++ 2M by the published sampler, its model returning `eps`."""
    noise = module.NoiseScheduleVP("linear")
    with tempfile.TemporaryDirectory() as folder, _statistics_stay_here():
        shape = (STATISTICS_POINTS, *x.shape[1:])
        zeros, ones = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        np.savez(Path(folder) / "l.npz", l=ones)
        np.savez(Path(folder) / "sb.npz", s=zeros, b=zeros)
        torch.save(torch.zeros(x.shape[1:]), Path(folder) / "mean.pth")
        sampler = module.uni_sampler(
            lambda _x, _t: eps,
            noise,
            statistics_dir=folder,
            dpmsolver_v3_t_start=noise.T,
            dpmsolver_v3_t_end=1 / noise.total_N,
            average_x0_dir=str(Path(folder) / "mean.pth"),
        )
    decisions = _decisions(torch.linspace(noise.T, 1 / noise.total_N, steps + 1), steps)
    return lambda: sampler.sample(x, decisions)  # type: ignore[no-any-return]


def _decisions(times: Tensor, steps: int) -> dict[str, Any]:
    orders = [1, *[2] * (steps - 1)]
    slope = {"estimate": "Difference_1", "active_points": [-2], "relaxation": "unipc-bh2"}
    nothing = {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}
    return {
        "timesteps": times,
        "orders": orders,
        "prediction_types": ["data_prediction"] * steps,
        "start_points": [-1] * steps,
        "derivative_types": [[slope] * (order - 1) for order in orders],
        "corrector_types": [nothing] * steps,
        "afs": "no_afs",
    }


@contextmanager
def _statistics_stay_here() -> Iterator[None]:
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *_arguments, **_named: self  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = original  # type: ignore[method-assign]
