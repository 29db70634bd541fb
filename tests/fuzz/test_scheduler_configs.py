"""Whatever stands in a scheduler's configuration: a noise schedule that means something, or a FewstepError."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.tasks.models.checks import json_object
from fewstep.tasks.models.from_diffusers import from_config, prediction_type
from fewstep.tasks.models.scheduler_settings import CLASSES, ONLY, TRAINED, WALKED
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import preset_on_grid
from fewstep.tasks.sampling.stock import stock_schedule

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2000),
    st.floats(width=32),
    st.sampled_from(["", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "v_prediction", "sample", "zero"]),
    st.sampled_from(
        ["epsilon", "flow_prediction", "continuous", "leading", "trailing", "learned_range", "bh1", "heun"]
    ),
    st.lists(st.floats(0, 1, width=32), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=1),
)
# Not the one class that the tests' environment cannot build.
NAMES = [*sorted(CLASSES - {"DPMSolverSDEScheduler"}), "utils", "UNet2DModel", "FewStepScheduler", "SCMScheduler"]
CONFIGS = st.builds(
    lambda name, settings: {"_class_name": name, **settings},
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(sorted(TRAINED | WALKED | set(ONLY))) | st.text(max_size=8), ODD, max_size=4),
)


pytestmark = pytest.mark.usefixtures("unlogged")


@pytest.mark.filterwarnings("ignore")
@given(config=CONFIGS)
def test_a_configuration_means_something_or_is_refused(config: dict[str, Any]) -> None:
    try:
        noise = from_config(config)
        output = prediction_type(config)
        meaning = noise.output_map(output, noise.lambda_start)
        schedule = preset_on_grid("dpmpp-2m/uniform-lambda-zero", noise, 3)
        tables = compile_schedule(schedule, noise, output)
    except FewstepError:
        return
    assert math.isfinite(noise.lambda_start)
    assert noise.lambda_start < noise.lambda_end
    assert all(map(math.isfinite, meaning))
    assert np.isfinite(tables.P).all()
    assert np.isfinite(tables.Q).all()
    assert all(map(math.isfinite, tables.times))
    # The same numbers that diffusers reads from it, wherever it keeps them.
    stock = getattr(diffusers, str(config["_class_name"]), None)
    if stock is not None and hasattr(stock, "alphas_cumprod") and not config.get("use_flow_sigmas"):
        alphas = np.asarray(stock.from_config(config).alphas_cumprod, np.float64)
        assert noise.alpha_sigma(noise.lambda_at(0.0))[0] ** 2 == pytest.approx(alphas[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@given(config=CONFIGS, nfe=st.integers(-1, 12))
def test_a_stock_scheduler_is_a_schedule_or_refused(config: dict[str, Any], nfe: int) -> None:
    try:
        schedule = stock_schedule(config, nfe)
    except FewstepError:
        return
    assert schedule.nfe == nfe


@given(data=st.data())
def test_a_damaged_configuration_file_is_read_or_refused(
    data: st.DataObject, damaged: Callable[[st.DataObject, bytes], bytes], tmp_path: Path
) -> None:
    content = json.dumps({"_class_name": "DDIMScheduler", "beta_end": 0.012, "prediction_type": "v_prediction"})
    (tmp_path / "scheduler_config.json").write_bytes(damaged(data, content.encode()))
    try:
        noise = from_config(json_object(tmp_path / "scheduler_config.json"))
    except FewstepError:
        return
    assert math.isfinite(noise.lambda_start)
    assert noise.lambda_start < noise.lambda_end
