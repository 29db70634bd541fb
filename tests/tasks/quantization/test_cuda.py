"""torchao on CUDA; what needs no GPU is tested everywhere."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from fewstep.errors import ConfigurationError, ModelError
from fewstep.tasks.quantization.cuda import to_torchao


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_agrees_with_full_precision(compiled: bool) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)).cuda()
    quantised = to_torchao(copy.deepcopy(exact), compiled)
    x = torch.randn(32, 64, device="cuda")
    with torch.no_grad():
        expected = exact(x)
        assert (quantised(x) - expected).norm() < 0.05 * expected.norm()


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        to_torchao(nn.Linear(2, 2))


@pytest.mark.parametrize(("module", "message"), [(nn.Conv2d(1, 1, 1), "no linear layer"), (nn.Linear(2, 2), "on cpu")])
def test_refuses_what_it_cannot_quantise(module: nn.Module, message: str) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ModelError, match=message):
        to_torchao(module)
