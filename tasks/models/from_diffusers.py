"""Read a model's noise schedule off its diffusers scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.errors import ModelError
from fewstep.search_spaces.schedule import Threshold
from fewstep.tasks.models.noise_families import EDM, FlowMatching, VarianceExploding
from fewstep.tasks.models.noise_schedule import ContinuousVP, DiscreteVP, NoiseSchedule
from fewstep.tasks.models.scheduler_settings import EDM_CLASSES, FLOW, build_scheduler, check_settings
from fewstep.tasks.models.stock_times import StockTimes

# The deprecated VP pipeline of diffusers tells its network 999 t.
SCORE_SDE_SCALE = 999.0


def from_diffusers(
    scheduler: Any, image_seq_len: int | None = None, *, mu: float | None = None, even: bool | None = None
) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler object, with the model's own thresholding.

    What its pipeline gives a flow model's scheduler, see StockTimes: `image_seq_len` is the number of the image's
    tokens, which a dynamic shift depends on (without it, only what needs that shift is refused), `mu` that shift's mu
    where a pipeline has its own, `even` whether it gives even sigmas. ModelError where the class describes no noise
    schedule, or one of its settings is not understood.
    """
    config = config_of(scheduler)
    check_settings(config)
    try:
        stock = StockTimes(config, image_seq_len, mu, even)
        noise = _noise(scheduler, config, stock)
        noise.threshold, noise.stock = _threshold(config), stock
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{config['_class_name']} has a setting of a wrong kind: {error}") from error
    return noise


def config_of(scheduler: Any) -> dict[str, Any]:
    """The whole configuration of a diffusers scheduler object, defaults and class included."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def from_config(
    config: Mapping[str, Any],
    image_seq_len: int | None = None,
    *,
    mu: float | None = None,
    even: bool | None = None,
) -> NoiseSchedule:
    """The same from a configuration, which names its class."""
    return from_diffusers(build_scheduler(config), image_seq_len, mu=mu, even=even)


def _flow(config: dict[str, Any], stock: StockTimes) -> FlowMatching:
    count = float(config.get("num_train_timesteps", 1000))
    terminal = float(config["shift_terminal"]) if config.get("shift_terminal") else None
    smallest = 1 / count
    if not stock.dynamic:
        # Such a scheduler has bent its smallest sigma already when it bends it with all the others.
        smallest = FlowMatching(1.0, stock.shift).shifted(smallest)
    return FlowMatching(count, stock.shift, terminal, smallest)


def _noise(scheduler: Any, config: dict[str, Any], stock: StockTimes) -> NoiseSchedule:
    name = config["_class_name"]
    if name in FLOW or config.get("use_flow_sigmas"):
        return _flow(config, stock)
    if config.get("prediction_type") == "flow_prediction":
        raise ModelError(f"{name} predicts flows on a noise schedule that is none: set use_flow_sigmas to true")
    if name in EDM_CLASSES:
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]), float(config["sigma_data"]))
    if name == "ScoreSdeVeScheduler":
        return VarianceExploding(float(config["sigma_min"]), float(config["sigma_max"]))
    if name == "ScoreSdeVpScheduler":
        return ContinuousVP(float(config["beta_min"]), float(config["beta_max"]), scale=SCORE_SDE_SCALE)
    alphas_cumprod = np.asarray(scheduler.alphas_cumprod, np.float64)
    if len(alphas_cumprod) != config.get("num_train_timesteps", len(alphas_cumprod)):
        raise ModelError(
            f"{name} has {len(alphas_cumprod)} trained_betas for {config['num_train_timesteps']} num_train_timesteps"
        )
    ends = {key: config.get(key) for key in ("sigma_min", "sigma_max")}
    if _is_continuous(config):
        low, high = (math.sqrt((1 - a) / a) if a > 0 else math.inf for a in (alphas_cumprod[0], alphas_cumprod[-1]))
        return EDM(float(ends["sigma_min"] or low), float(ends["sigma_max"] or high), 1.0)
    for key, value in ends.items():
        if value is not None:
            raise ModelError(f'{name} has {key} = {value!r}, which is understood with timestep_type "continuous" alone')
    shifted = config.get("snr_shift_scale")
    if not name.startswith("CogVideoX") and shifted not in (None, 1.0):
        raise ModelError(f"{name} has snr_shift_scale = {shifted!r}, which only the schedulers of CogVideoX heed")
    return DiscreteVP(
        alphas_cumprod,
        start=float(config.get("lambda_min_clipped") or -math.inf),
        zero_snr=bool(config.get("rescale_betas_zero_snr")),
    )


def _is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether the network is told log(sigma) / 4, which diffusers does for v prediction alone."""
    kind = config.get("timestep_type", "discrete")
    if kind not in ("discrete", "continuous"):
        raise ModelError(f"timestep_type {kind!r} is not understood: discrete or continuous")
    return bool(kind == "continuous" and config.get("prediction_type") == "v_prediction")


def _threshold(config: Mapping[str, Any]) -> Threshold | None:
    if not config.get("thresholding"):
        return None
    limit = float(config.get("sample_max_value", 1.0))
    if not 1 <= limit < math.inf:
        raise ModelError(f"sample_max_value {limit:g} with thresholding: give a finite number of at least 1")
    return Threshold(kind="dynamic", limit=limit, quantile=float(config.get("dynamic_thresholding_ratio", 0.995)))


def prediction_type(config: Mapping[str, Any]) -> str:
    """What the network returns, by its scheduler's configuration."""
    name = str(config.get("_class_name", ""))
    if name in FLOW:
        return "flow_prediction"
    if name == "ScoreSdeVeScheduler":
        return "score"
    said = str(config.get("prediction_type", "epsilon"))
    return "sample" if said == "original_sample" else said
