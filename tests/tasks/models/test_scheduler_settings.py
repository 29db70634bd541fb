"""Settings of a scheduler that change what the network's output means are honoured or refused, never dropped."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest

from fewstep.errors import ModelError
from fewstep.tasks.models.from_diffusers import from_config, from_diffusers
from fewstep.tasks.models.noise_families import EDM
from fewstep.tasks.models.noise_schedule import DiscreteVP
from fewstep.tasks.models.scheduler_settings import CLASSES, ONLY, TRAINED, WALKED, build_scheduler, scheduler_class
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.grids import preset_on_grid

COSINE = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"}


def test_every_setting_of_every_known_class_is_named() -> None:
    """A new setting of diffusers is a decision to take here, not one to be dropped."""
    known = TRAINED | WALKED | set(ONLY)
    for name in sorted(CLASSES - {"DPMSolverSDEScheduler"}):
        assert set(dict(scheduler_class(name)().config)) <= known | {"_use_default_values"}, name


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DDIMScheduler"])
def test_a_clipped_start_is_where_samplers_start(name: str) -> None:
    noise = from_config({**COSINE, "_class_name": name, "lambda_min_clipped": -5.1})
    assert noise.lambda_start == -5.1
    for grid in ("uniform-t", "karras", "uniform-lambda", "beta-zero"):
        schedule = preset_on_grid(f"dpmpp-2m/{grid}", noise, 4)
        assert schedule.lambdas[0] == pytest.approx(-5.1)
        compile_schedule(schedule, noise)


def test_diffusers_first_timestep_is_not_before_the_clipped_start() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    scheduler.set_timesteps(10)
    noise = from_diffusers(scheduler)
    assert noise.lambda_start <= noise.lambda_at(float(scheduler.timesteps[0])) < noise.lambda_start + 0.05


@pytest.mark.parametrize("bounds", [{"sigma_min": 0.002, "sigma_max": 120.0}, {}])
def test_a_continuous_v_model_is_told_a_quarter_of_log_sigma(bounds: dict[str, float]) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, **bounds
    )
    scheduler.set_timesteps(5)
    noise = from_diffusers(scheduler)
    assert isinstance(noise, EDM)
    assert noise.sigma_data == 1.0
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        assert noise.time(-math.log(float(sigma))) == pytest.approx(float(time), abs=1e-5)


def test_thresholding_keeps_x0_in_range_under_every_schedule() -> None:
    noise = from_config({"_class_name": "DDPMScheduler", "thresholding": True, "sample_max_value": 1.5})
    tables = compile_schedule(preset_on_grid("unipc-2-bh2/karras", noise, 3), noise)
    assert tables.threshold is not None
    assert (tables.threshold.kind, tables.threshold.limit, tables.threshold.quantile) == ("dynamic", 1.5, 0.995)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_noise_prediction_at_zero_snr_is_refused(name: str) -> None:
    noise = from_config({"_class_name": name, "rescale_betas_zero_snr": True})
    with pytest.raises(ModelError, match="zero terminal SNR"):
        noise.output_map("epsilon", 0.0)
    noise.output_map("v_prediction", 0.0)
    noise.output_map("sample", 0.0)


def test_a_last_alpha_of_zero_is_zero_snr_whoever_set_it() -> None:
    with pytest.raises(ModelError, match="zero terminal SNR"):
        DiscreteVP([0.9, 0.5, 0.0]).output_map("epsilon", 0.0)
    DiscreteVP([0.9, 0.5, 1e-9]).output_map("epsilon", 0.0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas = True"),
        ({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [1, 2]}, "scale_factors"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 80.0}, "sigma_max = 80.0"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "cosine"}, "timestep_type 'cosine'"),
        ({"_class_name": "DDIMScheduler", "predict_epsilon": False}, 'prediction_type "sample"'),
        ({"_class_name": "DDIMScheduler", "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"_class_name": "DDIMScheduler", "some_new_setting": 2}, "some_new_setting = 2"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, "2 trained_betas for 1000"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": -1}, "num_train_timesteps = -1"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, "cannot build DDIMScheduler"),
        ({"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 0.5}, "sample_max_value"),
        ({**COSINE, "lambda_min_clipped": "low"}, "wrong kind"),
        ({**COSINE, "lambda_min_clipped": 20.0}, "leaves nothing"),
        ({"_class_name": "HeliosScheduler", "use_flow_sigmas": True}, "describes no noise schedule"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": "a"}, "EDMEulerScheduler"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        from_config(config)


def test_settings_left_over_from_another_class_do_not_matter() -> None:
    """diffusers keeps what one class has and another lacks, as the default scheduler of Stable Diffusion shows."""
    saved = {
        **{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_schedule": "scaled_linear"},
        **{"clip_sample": False, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
        **{"interpolation_type": "linear", "sample_max_value": 1.0, "use_karras_sigmas": False, "trained_betas": None},
    }
    assert from_config(saved).lambda_start == from_config({**saved, "_class_name": "DDIMScheduler"}).lambda_start


def test_the_scheduler_of_a_found_schedule_is_the_one_it_was_found_for() -> None:
    stock = diffusers.DDIMScheduler(beta_end=0.012)
    base = {**stock.config, "_class_name": "DDIMScheduler"}
    found = build_scheduler({"_class_name": "FewStepScheduler", "schedules": [], "base": base})
    assert type(found).__name__ == "DDIMScheduler"
    assert found.config.beta_end == 0.012
