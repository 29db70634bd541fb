"""Which settings of a diffusers scheduler are understood, so that none is dropped without a word.

A scheduler's configuration says two things: what the network was trained on, which decides what its output means, and
how the stock sampler walks, which a schedule decides anew. The first is honoured (`from_diffusers`); the second is
left to schedules (`tasks/sampling/stock.py` makes those that the stock scheduler walks). Whatever is in neither list
is refused unless it has the one value that means nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fewstep.errors import ModelError

# What the network was trained on.
TRAINED = {
    "base_image_seq_len",
    "base_shift",
    "beta_end",
    "beta_max",
    "beta_min",
    "beta_schedule",
    "beta_start",
    "flow_shift",
    "lambda_min_clipped",
    "max_image_seq_len",
    "max_shift",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "shift",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "snr_shift_scale",
    "time_shift_type",
    "timestep_type",
    "trained_betas",
    "use_dynamic_shifting",
    "use_flow_sigmas",
    "variance_type",
    # Values of x0 kept in range at every call, whoever samples.
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "thresholding",
}
# How the stock sampler walks: its times, order and formulas, its noise, and its own clipping.
WALKED = {
    "algorithm_type",
    "base",
    "clip_sample",
    "clip_sample_range",
    "correct_steps",
    "corrector_order",
    "disable_corrector",
    "eta",
    "euler_at_final",
    "final_sigmas_type",
    "interpolation_type",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "predictor_order",
    "rho",
    "sampling_eps",
    "schedules",
    "set_alpha_to_one",
    "sigma_schedule",
    "skip_prk_steps",
    "snr",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "stochastic_sampling",
    "tau_func",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_values",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "tensor_format",
}
# Understood with this value alone.
ONLY = {
    "invert_sigmas": (False, "turn the model's time around, so that it is told 0 where others are told 1000"),
    "predict_epsilon": (True, 'say prediction_type "sample" instead'),
    "scale_factors": (None, "sampling over growing sizes is not supported"),
    "upscale_mode": ("bicubic", "sampling over growing sizes is not supported"),
}
VARIANCE_PRESERVING = {
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
}
EDM_CLASSES = {"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
SCORE_SDE = {"ScoreSdeVeScheduler", "ScoreSdeVpScheduler"}
CLASSES = VARIANCE_PRESERVING | EDM_CLASSES | FLOW | SCORE_SDE
MOST_TIMESTEPS = 100_000


def check_settings(config: Mapping[str, Any]) -> None:
    """ModelError for a class of schedulers that is not known, and for a setting that would be dropped."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise ModelError(
            f"{name!r} describes no noise schedule that is known: use a scheduler with betas (DDPM, DDIM, "
            "DPM-Solver, UniPC, ...), an EDM, score-SDE or flow-matching one"
        )
    for key, value in config.items():
        if key in TRAINED or key in WALKED or key.startswith("_"):
            continue
        if key not in ONLY:
            if value is None or value is False:
                continue
            raise ModelError(
                f"{name} has {key} = {value!r}, which is not understood: remove it from scheduler_config.json if the "
                "model does not depend on it"
            )
        wanted, advice = ONLY[key]
        if value is not None and value != wanted:
            raise ModelError(f"{name} has {key} = {value!r}, which is not supported ({advice})")
    _check_shifting(name, config)
    count = config.get("num_train_timesteps", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_TIMESTEPS:
        raise ModelError(f"{name} has num_train_timesteps = {count!r}: give a whole number up to {MOST_TIMESTEPS:,}")


def _check_shifting(name: str, config: Mapping[str, Any]) -> None:
    """ModelError for a shift by the image's size, or of the last time, that the class would not do."""
    flow = name in FLOW or bool(config.get("use_flow_sigmas"))
    for key in ("use_dynamic_shifting", "shift_terminal"):
        if config.get(key) and not (flow and heeds(name, key)):
            why = (
                "which it does not heed" if not heeds(name, key) else "which only means something with use_flow_sigmas"
            )
            raise ModelError(f"{name} has {key} = {config[key]!r}, {why}: remove it, or use another scheduler class")


def heeds(name: str, setting: str) -> bool:
    """Whether a class of diffusers has a setting; a configuration may hold what other classes have."""
    return setting in inspect.signature(scheduler_class(name).__init__).parameters


def scheduler_class(name: str) -> Any:
    """diffusers' class of a known name; ModelError where the installed diffusers has none."""
    import diffusers

    if name == "ScoreSdeVpScheduler":
        from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

        return ScoreSdeVpScheduler
    found = getattr(diffusers, name, None)
    if not inspect.isclass(found):
        raise ModelError(f"the installed diffusers has no scheduler class {name!r}: install another version")
    return found


def build_scheduler(config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a configuration; ModelError where it is not understood or cannot be built.

    That of a FewStepScheduler is the one that its schedules were found for.
    """
    if config.get("_class_name") == "FewStepScheduler" and isinstance(config.get("base"), Mapping):
        config = config["base"]
    check_settings(config)
    name = str(config["_class_name"])
    kind = scheduler_class(name)
    try:
        return kind.from_config(dict(config))
    except Exception as error:  # diffusers checks little: what a bad value raises depends on where it is used.
        raise ModelError(f"diffusers cannot build {name}: {type(error).__name__}: {error}") from error
