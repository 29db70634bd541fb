"""Found schedules as a diffusers scheduler: `pipe.scheduler = FewStepScheduler.from_schedules(...)`.

It walks the same compiled rows as every other sampler here, one row a `step`, so a pipeline makes the images
that `fewstep sample` makes. What a scheduler cannot do: guidance is the pipeline's (`guidance_scale`), skip
coefficients are the network's (`tasks.models.skips.attach_skips`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from fewstep.errors import ConfigurationError, ModelError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.from_diffusers import config_of, from_diffusers, prediction_type
from fewstep.tasks.models.noise_families import lambda_of_strength
from fewstep.tasks.models.scheduler_settings import CLASSES, build_scheduler
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.asked_steps import StepsAsked, check_mu
from fewstep.tasks.sampling.pipeline_frames import Caller, calling_pipeline, prepare_input
from fewstep.tasks.sampling.walk import Walk, wide

STATISTICS_FILE = "statistics.safetensors"
# What pipelines and training scripts read off a scheduler about the model's noise; the model's own answers.
OF_THE_MODEL = ("alphas", "alphas_cumprod", "betas", "final_alpha_cumprod", "shift", "sigma_max", "sigma_min")
# Lambdas that are meant to be one.
NEAR = 1e-3


@dataclass
class FewStepSchedulerOutput(BaseOutput):
    """`prev_sample` is the next input, of the sample's shape; `pred_original_sample` the x0 that this call means.

    At the last step the two are one, as pipelines that show the second expect.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """A set of schedules, one for each number of denoiser calls.

    `schedules` are the JSON objects of `SolverSchedule`; `base` is the configuration of the scheduler that the
    model came with, which says what its noise schedule and prediction type are. Its settings stand in `config` too, so
    that `from_config` makes any stock scheduler of this one, and this one again of that.

    Samples have any shape that begins with the batch. Half precision is summed in single and handed back in half.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = sorted(CLASSES)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        schedules: Sequence[Mapping[str, Any]] = (),
        base: Mapping[str, Any] | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        if not schedules or base is None:
            raise ConfigurationError(
                "a FewStepScheduler needs schedules and the model's own scheduler configuration: build it with "
                "FewStepScheduler.from_schedules or load one that `fewstep export` wrote"
            )
        self._stock = build_scheduler(base)
        self.noise = from_diffusers(self._stock)
        self._output = prediction_type(config_of(self._stock))
        self.noise.output_map(self._output, self.noise.lambda_start)
        self.register_to_config(**_handed_on(self._stock.config, self.config))
        parsed = [SolverSchedule.build(**dict(fields)) for fields in schedules]
        self.schedules = {schedule.nfe: schedule for schedule in parsed}
        if len(self.schedules) < len(parsed):
            raise ConfigurationError("two schedules have the same number of denoiser calls: give one for each")
        self.statistics: ModelStatistics | None = None
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._walk: Walk | None = None
        self._begin_index: int | None = None
        # Times that stand before the first one, for a pipeline to leave them out.
        self._fillers = 0
        self._scale_was_read = False

    @classmethod
    def from_schedules(
        cls,
        schedules: SolverSchedule | Sequence[SolverSchedule],
        base: Any,
        statistics: ModelStatistics | None = None,
    ) -> Self:
        """From schedules and the model's own scheduler (or its configuration)."""
        several = [schedules] if isinstance(schedules, SolverSchedule) else list(schedules)
        config = dict(getattr(base, "config", base))
        if not isinstance(base, Mapping):
            config["_class_name"] = type(base).__name__
        made: Self = cls(
            schedules=[schedule.model_dump(mode="json") for schedule in several],
            base={name: value for name, value in config.items() if name != "_use_default_values"},
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
        )
        made.statistics = statistics
        return made

    @property
    def config(self) -> Any:
        """The configuration; ConfigurationError for a pipeline that would put another scheduler in this one's place."""
        caller = sys._getframe(1)
        pipeline = caller.f_locals.get("self")
        if (
            caller.f_code.co_name == "__init__"
            and "from_config" in caller.f_code.co_names
            and isinstance(pipeline, diffusers.DiffusionPipeline)
        ):
            raise ConfigurationError(
                f"{type(pipeline).__name__} replaces the scheduler that it is made with: make or load it with the "
                "model's own scheduler (from_pretrained takes scheduler=), then set pipe.scheduler to this one"
            )
        return super().config

    @property
    def compatibles(self) -> list[type]:
        """The schedulers that this one's configuration makes: the model's, and those that it is compatible with."""
        return list(dict.fromkeys([type(self._stock), *self._stock.compatibles]))

    def __getattr__(self, name: str) -> Any:
        if name in OF_THE_MODEL and "_stock" in self.__dict__:
            return getattr(self._stock, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    # -- what pipelines call --------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
    ) -> None:
        """Get ready for one run of that many network calls.

        `timesteps` and `sigmas` can only say how many, see `asked_steps`. `mu` moves nothing: it says where a stock
        scheduler would bend its own grid to, and the noise levels of a found schedule are its own. A pipeline with a
        `strength` below 1 takes all of a schedule that begins there or later: the times that it leaves out are then
        put before it.
        Raises ConfigurationError where there is no schedule for that number.
        """
        check_mu(mu)
        if original_inference_steps is not None:
            raise ConfigurationError(
                f"original_inference_steps={original_inference_steps}: a schedule has its own times, leave it out"
            )
        asked = StepsAsked.of(num_inference_steps, timesteps, sigmas)
        schedule = self.schedules.get(asked.steps)
        if schedule is None:
            there = ", ".join(str(n) for n in sorted(self.schedules))
            raise ConfigurationError(f"{asked.said}: this scheduler holds schedules for {there} steps")
        walk = Walk(schedule, self.noise, self._output, self.statistics)
        asked.check(walk.times, walk.sigmas, len(self))
        self._walk, self.num_inference_steps, self._begin_index = walk, asked.steps, None
        self.timesteps = torch.tensor(walk.times, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor(walk.sigmas, dtype=torch.float32)
        caller = calling_pipeline()
        self._fillers = self._left_out(walk, caller, mu) if caller is not None else 0
        if self._fillers:
            self.timesteps = torch.cat([self.timesteps[:1].expand(self._fillers), self.timesteps])
            self.sigmas = torch.cat([self.sigmas[:1].expand(self._fillers), self.sigmas])
        if walk.changes_inputs and caller is not None and getattr(caller.pipeline, "scheduler", None) is self:
            prepare_input(caller.pipeline, self, self._prepared(walk), walk.spare)

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied by before the first step."""
        fresh = self._walk is not None and self._walk.place is None
        chosen = [self.schedules[self.num_inference_steps or 0]] if fresh else list(self.schedules.values())
        scales = {self.noise.prior_scale(schedule.lambdas[0]) for schedule in chosen}
        if len(scales) > 1:
            raise ConfigurationError(
                "the schedules start from different noise: call set_timesteps before the first step"
            )
        self._scale_was_read = True
        return scales.pop()

    @property
    def begin_index(self) -> int | None:
        """Where in `timesteps` the run begins, if that was said."""
        return None if self._begin_index is None else self._fillers + self._begin_index

    @property
    def step_index(self) -> int | None:
        """The next step's place in `timesteps`; None before the first."""
        place = None if self._walk is None else self._walk.place
        return None if place is None else self._fillers + place

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that place of `timesteps` (`strength` below 1), with a sample that `add_noise` made there.

        The schedule is taken up there without the history that it would have, see `search_spaces.schedule.restart`.
        """
        if not 0 <= begin_index <= len(self.timesteps):
            raise ConfigurationError(f"begin_index={begin_index}: there are {len(self.timesteps)} timesteps")
        self._begin_index = max(0, begin_index - self._fillers)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given in place of `sample` (B, ...); B may be doubled for guidance."""
        walk = self._arrived(timestep, sample)
        walk.prepared = walk.scaled = True
        return walk.model_input(sample)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        **others: Any,
    ) -> FewStepSchedulerOutput | tuple[Tensor, Tensor]:
        """One row: from the network's output at `sample` (both (B, ...)) to the next sample.

        `generator` is not used: the sampler is deterministic. Raises ConfigurationError for the noise of `eta`, for
        `use_clipped_model_output` and other schedulers' settings, ScheduleError where the steps are not taken in their
        order, or the pipeline does not prepare the network's input as the schedule needs it.
        """
        for name, value in {"eta": eta, "use_clipped_model_output": use_clipped_model_output, **others}.items():
            if isinstance(value, Tensor) or value:
                shown = "a tensor" if isinstance(value, Tensor) else repr(value)
                raise ConfigurationError(
                    f"{name}={shown}: leave it out, a schedule draws no noise and clips by its own threshold"
                )
        walk = self._arrived(timestep, sample)
        following, x0 = walk.step(self._mean(model_output, sample), sample)
        return FewStepSchedulerOutput(following, x0) if return_dict else (following, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at `timesteps` (B,): those of a run that is set, or any of the model's."""
        lambdas = [self._lambda_at(float(t)) for t in timesteps.flatten()]
        shape = (-1, *(1,) * (original_samples.ndim - 1))
        pairs = zip(*(self.noise.alpha_sigma(v) for v in lambdas), strict=True)
        x0, noise = wide(original_samples), wide(noise)
        alpha, sigma = (x0.new_tensor(values).view(shape) for values in pairs)
        return (alpha * x0 + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor | None = None) -> Tensor:
        """`add_noise` as flow pipelines call it."""
        if noise is None:
            raise ConfigurationError("scale_noise needs the noise: give noise")
        times = timestep if isinstance(timestep, Tensor) else torch.tensor([float(timestep)])
        return self.add_noise(sample, noise, times)

    # -- files ----------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **arguments: Any) -> None:
        """Write scheduler_config.json, and the model's statistics beside it where schedules need them."""
        super().save_pretrained(save_directory, push_to_hub, **arguments)
        if self.statistics is not None:
            self.statistics.save(Path(save_directory) / STATISTICS_FILE)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, subfolder: str | None = None, **arguments: Any
    ) -> Any:
        """Load what `save_pretrained` wrote."""
        made = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **arguments)
        path = Path(str(pretrained_model_name_or_path), subfolder or "", STATISTICS_FILE)
        scheduler = made[0] if isinstance(made, tuple) else made
        if path.is_file():
            scheduler.statistics = ModelStatistics.load(path)
        return made

    # -- inside ---------------------------------------------------------------------------------------

    def _arrived(self, timestep: Any, sample: Tensor) -> Walk:
        """The run at `timestep`. Its noise comes scaled where `init_noise_sigma` was read since the last one."""
        if self._walk is None:
            raise ScheduleError("call set_timesteps before the first step")
        self._walk.arrive(timestep, self._begin_index, sample, self._scale_was_read)
        self._scale_was_read = False
        return self._walk

    def _left_out(self, walk: Walk, caller: Caller, mu: float | None) -> int:
        """How many times a pipeline that begins with an image leaves out, of a schedule that is to be taken whole."""
        if caller.strength is None or getattr(caller.pipeline, "scheduler", None) is not self:
            return 0
        try:
            noise = self.noise if mu is None else from_diffusers(self._stock, mu=mu)
            begin = lambda_of_strength(noise, caller.strength)
        except ModelError:
            return 0
        if walk.lambdas[0] < begin - NEAR * max(1.0, abs(begin)):
            return 0
        found = caller.left_out(len(walk.times))
        self._begin_index = None
        return found

    def _prepared(self, walk: Walk) -> Callable[[Tensor], Tensor | None]:
        """What a pipeline's network is given, see `prepare_input`: None once this run asks for nothing."""
        ours = weakref.ref(self)

        def prepared(sample: Tensor) -> Tensor | None:
            scheduler = ours()
            if scheduler is None or scheduler._walk is not walk or walk.is_over or walk.scaled:
                return None
            scheduler._arrived(None, sample)
            if not walk.changes_input:
                return None
            walk.prepared = True
            return walk.model_input(sample)

        return prepared

    def _mean(self, output: Tensor, sample: Tensor) -> Tensor:
        """The network's output without the variance that some networks return beside it."""
        if output.shape == sample.shape:
            return output
        learned = str(self._stock.config.get("variance_type")).startswith("learned")
        doubled = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if learned and output.shape == doubled:
            return output[:, : sample.shape[1]]
        raise ConfigurationError(
            f"the network returned {tuple(output.shape)} for a sample of {tuple(sample.shape)}: the two must agree, or "
            "the model's scheduler say with variance_type that the second half is a learned variance"
        )

    def _lambda_at(self, time: float) -> float:
        """Lambda at a time: of the run that is set, whose told times may be moved, or of the model."""
        walk = self._walk
        there = walk.places(time) if walk is not None else []
        if walk is None or not there:
            return self.noise.lambda_at(time)
        here = walk.place if walk.place is not None else self._begin_index
        if walk.place is None and there[0] == 0:
            walk.noised = True
        if walk.place is not None and not walk.is_over:
            # Between steps a pipeline puts noise on what it knows of an image, as its network is told the time.
            return self.noise.lambda_at(time)
        return walk.lambdas[here if here in there else there[0]]


def _handed_on(stock: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What other schedulers take from the stock one's configuration, defaults too: theirs may be others."""
    return {k: v for k, v in stock.items() if k not in own and not k.startswith("_")}


# Saved pipelines name the module that a class is looked for in, and diffusers imports none on a saved pipeline's word:
# what `import fewstep` makes known is enough.
FewStepScheduler.__module__ = "fewstep"
