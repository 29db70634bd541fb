"""The table of calibration seeds: means and intervals over the seeds, a row a model and method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quantization_schedules import STOCK
from benchmarks.quantization_seeds import main, rows


def line(model: str, method: str, seed: int, value: float) -> dict[str, object]:
    every = {name: value for name in ("own@8", *STOCK)}
    return {
        "model": model,
        "method": method,
        "calibrated_on": "own@8",
        "seed": seed,
        "images": 5,
        "temporal": {"own": value, "stock": value, "all": value},
        "pixel": every,
        "feature": {name: 10 * value for name in every},
        "cpu_seconds": 2.0,
        "bytes": 7,
    }


def test_a_row_is_the_mean_over_the_seeds_with_its_interval(tmp_path: Path) -> None:
    lines = [line("m", method, seed, 1.0 + seed) for method in ("a", "b") for seed in range(3)]
    lines += [line("n", "a", seed, 5.0) for seed in range(2)]
    found = {(row["model"], row["method"]): row for row in rows(lines)}
    assert list(found) == [("m", "a"), ("m", "b"), ("n", "a")]
    row = found["m", "a"]
    half = 4.303 / 3**0.5
    assert (row["pixel_own"], row["feature_stock"]) == (2.0, 20.0)
    assert (row["pixel_own_low"], row["pixel_own_high"]) == pytest.approx((2 - half, 2 + half), rel=1e-2)
    assert found["n", "a"]["pixel_own_low"] == found["n", "a"]["pixel_own_high"] == 5.0
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert main([str(path), "--csv", str(tmp_path)]) == 0
    assert len((tmp_path / "quantization_seeds.csv").read_text().splitlines()) > 4
