"""pytorch-fid's own distance on any SciPy, to check and time ours against.

pytorch-fid 0.3 calls `scipy.linalg.sqrtm(..., disp=False)` and unpacks two results. SciPy 1.16 deprecated
`disp` and 1.18 dropped it. Only tests and benchmarks need this module.
"""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import scipy.linalg
from numpy.typing import ArrayLike
from pytorch_fid.fid_score import calculate_frechet_distance

from fewstep.tasks.metrics._rebind import rebound


def pytorch_fid_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """pytorch-fid's `calculate_frechet_distance`: means (D,), covariances (D, D), squared distance."""
    function = calculate_frechet_distance
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        function = rebound(function, linalg=SimpleNamespace(sqrtm=_sqrtm))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(function(mu1, sigma1, mu2, sigma2))


def _sqrtm(matrix: Any, disp: bool = True) -> Any:
    """`scipy.linalg.sqrtm` as it was before 1.18; pytorch-fid ignores the error estimate."""
    root = scipy.linalg.sqrtm(matrix)
    return root if disp else (root, 0.0)
