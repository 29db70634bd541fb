"""`evaluate` on models that are shown an image: which images they are shown has to be said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.tasks.models.condition_config import ConditionConfig


def test_evaluate_asks_for_a_source_and_refuses_an_unknown_one(
    run: Callable[..., Any], make_tiny_flow: Callable[..., Path], tmp_path: Path
) -> None:
    hole = ConditionConfig(kind="inpaint", dataset="digits", channels=3)
    model = make_tiny_flow(tmp_path / "inpaint", hole, labels=False)
    here = ("evaluate", "--model", model, "--ode", "euler@2", "--images", "20")
    assert "--source test" in run(*here).err
    assert "(given: all)" in run(*here, "--source", "all").err
    assert run(*here, "--source", "test").code == 0
