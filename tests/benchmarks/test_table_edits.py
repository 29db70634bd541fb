"""The table of edits: methods on the same images, every step, and one search an attribute that is never made twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables.edits import Edits
from fewstep.errors import ConfigurationError
from fewstep.tasks.models.files import ZOO


@pytest.mark.slow
def test_methods_and_steps_are_compared_on_the_same_images(
    tmp_path: Path, make_table: Callable[..., Any], published: Callable[[str], list[str]]
) -> None:
    asked = Edits(
        model="digits-ddpm",
        data="digits",
        attributes=("7/1",),
        steps=4,
        budget=1000,
        most_calls=0,
        screen_images=4,
        final_images=6,
        report_images=8,
        sweep_images=4,
        examples=12,
        fit_way="dpm-solver-2m/uniform-t@4",
        judge=str(ZOO / "digits-ddpm" / "classifier"),
    )
    made = make_table(asked, tmp_path)
    rows, steps = made["digits_edits"], made["digits_critical_step"]
    assert list(rows[0]) == published("digits_edits") == published("fashion_edits")
    assert list(steps[0]) == published("digits_critical_step") == published("fashion_critical_step")
    assert (tmp_path / "digits_edits.png").is_file()

    assert {r["method"] for r in rows} == {"none", "found", "found-by-ddim-40+40", "published", "real"}
    assert {r["attribute"] for r in rows} == {"7-vs-1"}
    by_method = {r["method"]: r for r in rows}
    ddim = by_method["found-by-ddim-40+40"]
    for name in ("success", "identity"):
        gain = float(by_method["found"][name]) - float(ddim[name])
        assert float(ddim[f"{name}_gain"]) == pytest.approx(gain, abs=1e-5)
        assert by_method["none"][f"{name}_gain"] == ""
    assert float(by_method["none"]["difference"]) > 0

    assert {"found", "shell", "peak", "gap", "readable", "t=300", "t=700", "T", "none", "sweep"} <= {
        s["role"] for s in steps
    }
    assert min(float(s["below_best"]) for s in steps if s["role"] == "sweep") == 0
    assert all(float(s["below_best_low"]) <= float(s["below_best"]) <= float(s["below_best_high"]) for s in steps)
    # Everything is known by now: the same table only reads.
    assert make_table(asked, tmp_path) == made
    with pytest.raises(ConfigurationError, match="other settings"):
        make_table(asked.model_copy(update={"steps": 5}), tmp_path)
