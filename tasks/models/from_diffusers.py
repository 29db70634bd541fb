"""Read a model's noise schedule off its diffusers scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.errors import ModelError
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, DiscreteVP, NoiseSchedule

# The deprecated VP pipeline of diffusers tells its network 999 t.
SCORE_SDE_SCALE = 999.0


def from_diffusers(scheduler: Any) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler object; ModelError where its class describes none."""
    name, config = type(scheduler).__name__, scheduler.config
    if (
        name.startswith("FlowMatch")
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    ):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return FlowMatching(float(config.get("num_train_timesteps", 1000)), float(shift or 1.0))
    if name.startswith("EDM"):
        return EDM(config["sigma_min"], config["sigma_max"], config["sigma_data"])
    if name == "ScoreSdeVeScheduler":
        return VarianceExploding(config["sigma_min"], config["sigma_max"])
    if name == "ScoreSdeVpScheduler":
        return ContinuousVP(config["beta_min"], config["beta_max"], scale=SCORE_SDE_SCALE)
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        raise ModelError(
            f"{name} describes no noise schedule that is known: use a scheduler with betas (DDPM, DDIM, "
            "DPM-Solver, UniPC, ...), an EDM, score-SDE or flow-matching one"
        )
    return DiscreteVP(np.asarray(alphas_cumprod, np.float64))


def prediction_type(config: dict[str, Any]) -> str:
    """What the network returns, by its scheduler's configuration."""
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        return "flow_prediction"
    if name == "ScoreSdeVeScheduler":
        return "score"
    return str(config.get("prediction_type", "epsilon"))
