"""The table of networks of few bits and schedules: what each method chooses, and what that is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.tables.joint import Joint

MakeTable = Callable[..., dict[str, list[dict[str, str]]]]


@pytest.mark.slow
def test_every_method_is_compared_at_each_config_and_no_joint_network_is_larger(
    flow: Path, tmp_path: Path, make_table: MakeTable
) -> None:
    configs = ("w8a8-naive-full", "w4a8-naive-paper")
    asked = Joint(
        model=str(flow), configs=configs, nfes=(2,), searches=(0, 1), budget=20_000, report_images=250, judges=(),
        teacher="dpmpp-2m/uniform-t-zero@6",
    )  # fmt: skip
    made = make_table(asked, tmp_path)
    rows = made["t_searches"]
    for seed in "01":
        held = [r for r in rows if r["search"] == seed]
        (exact,) = [r for r in held if r["config"] == "full precision"]
        for config in configs:
            own = {r["method"]: r for r in held if r["config"] == config}
            assert {"quantised", "fixed", "in turn"} <= set(own)
            if "joint" in own:
                assert int(own["joint"]["bytes"]) <= int(own["fixed"]["bytes"])
            # A config's part of the budget, its calibration besides.
            assert int(own["fixed"]["calls"]) <= 20_000 // 2 + 256 * 2
        assert int(exact["calls"]) <= 20_000
    together = {(r["method"], r["config"]): r for r in made["t"]}
    assert all(float(together["quantised", config]["versus"]) == 1 for config in configs)
    assert {r["searches"] for r in made["t"] if r["method"] != "joint"} == {"2"}
