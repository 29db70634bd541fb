"""Found schedules as a diffusers scheduler: `pipe.scheduler = FewStepScheduler.from_schedules(...)`.

It walks the same compiled rows as every other sampler here, one row a `step`, so a pipeline makes the images
that `fewstep sample` makes. What a scheduler cannot do: guidance is the pipeline's (`guidance_scale`), skip
coefficients are the network's (`tasks.models.skips.attach_skips`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.tasks.models.from_diffusers import config_of, from_diffusers, prediction_type
from fewstep.tasks.models.scheduler_settings import build_scheduler
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import compile_schedule
from fewstep.tasks.sampling.execute import Program

STATISTICS_FILE = "statistics.safetensors"
TIME_TOLERANCE = 1e-3


@dataclass
class FewStepSchedulerOutput(BaseOutput):
    """`prev_sample` (B, C, H, W) is the next input; `pred_original_sample` the x0 that this call means."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """A set of schedules, one for each number of denoiser calls.

    `schedules` are the JSON objects of `SolverSchedule`; `base` is the configuration of the scheduler that the
    model came with, which says what its noise schedule and prediction type are. Its settings stand in `config` too, so
    that `from_config` makes any stock scheduler of this one, and this one again of that.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = []
    _index: int
    _skipped: int
    _scaled: bool
    _held: dict[int, Tensor]

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
        stock = build_scheduler(base)
        self.noise = from_diffusers(stock)
        self._output = prediction_type(config_of(stock))
        self.noise.output_map(self._output, self.noise.lambda_start)
        self.register_to_config(**_handed_on(stock.config, self.config))
        parsed = [SolverSchedule.build(**dict(fields)) for fields in schedules]
        self.schedules = {schedule.nfe: schedule for schedule in parsed}
        if len(self.schedules) < len(parsed):
            raise ConfigurationError("two schedules have the same number of denoiser calls: give one for each")
        self.statistics: ModelStatistics | None = None
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._program: Program | None = None
        self._clear()

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
                f"{type(pipeline).__name__} replaces the scheduler that it is made with: make it with the model's own "
                "scheduler, then set pipe.scheduler to this one"
            )
        return super().config

    # -- what pipelines call --------------------------------------------------------------------------

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Get ready for one run of that many network calls.

        A schedule whose first step is analytic needs `scale_model_input` to be called, as latent diffusion
        pipelines do. For a pipeline that never does, ask for one step more: the first output is then ignored.
        Raises ConfigurationError where there is no schedule for that number.
        """
        schedule = self.schedules.get(num_inference_steps)
        spare = self.schedules.get(num_inference_steps - 1)
        wasteful = schedule is None and spare is not None and spare.first_call != "model"
        schedule = spare if wasteful else schedule
        if schedule is None:
            there = ", ".join(str(n) for n in sorted(self.schedules))
            raise ConfigurationError(
                f"num_inference_steps={num_inference_steps}: this scheduler holds schedules for {there} steps"
            )
        self._program = Program(
            compile_schedule(schedule, self.noise, self._output, self.statistics), torch.device(device or "cpu")
        )
        first = 0 if wasteful or self._program.called[0] else 1
        times = [time for k, time in enumerate(self._program.times) if k >= first]
        self.timesteps = torch.tensor(times, dtype=torch.float32, device=device)
        self.num_inference_steps = num_inference_steps
        self._clear()
        self._skipped = first

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied by before the first step."""
        if self._program is not None:
            return self._program.tables.prior_scale
        return self.noise.prior_scale(self.schedules[max(self.schedules)].lambdas[0])

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given in place of `sample` (B, C, H, W); B may be doubled for guidance."""
        program = self._ready()
        self._scaled = True
        k = self._index + self._skipped
        return program.model_input(k, self._node(sample)).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> FewStepSchedulerOutput | tuple[Tensor]:
        """One row: from the network's output at `sample` (both (B, C, H, W)) to the next sample.

        `generator` is not used: the sampler is deterministic. Raises ConfigurationError for the noise of `eta` and for
        `use_clipped_model_output`, ScheduleError where the steps are not taken in their order, or the pipeline does not
        prepare the network's input as the schedule needs it.
        """
        if eta or use_clipped_model_output:
            raise ConfigurationError(
                f"eta={eta:g}, use_clipped_model_output={use_clipped_model_output}: leave them out, a schedule draws "
                "no noise and clips by its own threshold"
            )
        program = self._ready()
        k = self._index + self._skipped
        self._check_step(program, k, timestep)
        node = self._node(sample)
        if self._skipped and self._index == 0:
            self._held[0] = _wide(sample)
        self._held[2 * k] = node
        x0 = None
        if program.called[k]:
            output = program.limited(k, node, _wide(model_output))
            self._held[2 * k + 1] = output
            x0_x, x0_o = program.tables.clean[k]
            x0 = (x0_x * node + x0_o * output).to(model_output.dtype)
        following = program.next_node(k, self._held).to(model_output.dtype)
        for index in program.expired[k]:
            self._held.pop(index, None)
        self._index, self._scaled = self._index + 1, False
        return FewStepSchedulerOutput(following, x0) if return_dict else (following,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at the model's times `timesteps` (B,)."""
        pairs = [self.noise.alpha_sigma(self.noise.lambda_at(float(t))) for t in timesteps.flatten()]
        shape = (-1, *(1,) * (original_samples.ndim - 1))
        alpha, sigma = (original_samples.new_tensor(v).view(shape) for v in zip(*pairs, strict=True))
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

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

    def _clear(self) -> None:
        self._held = {}
        self._index, self._skipped, self._scaled = 0, 0, False

    def _ready(self) -> Program:
        if self._program is None:
            raise ScheduleError("call set_timesteps before the first step")
        return self._program

    def _node(self, sample: Tensor) -> Tensor:
        """The current node: `sample`, but before an analytic first step the node that this step makes of it."""
        wide = _wide(sample)
        if self._skipped and self._index == 0:
            return self._ready().next_node(0, {0: wide})
        return wide

    def _check_step(self, program: Program, k: int, timestep: Any) -> None:
        if k >= len(program.times):
            raise ScheduleError(
                f"all {self.num_inference_steps} steps are done: call set_timesteps before the next run"
            )
        if abs(float(timestep) - program.times[k]) > TIME_TOLERANCE * max(1.0, abs(program.times[k])):
            raise ScheduleError(
                f"step {self._index} is at time {program.times[k]:.6g}, not {float(timestep):.6g}: a schedule is taken "
                "whole and in order (image-to-image pipelines, which start in the middle, are not supported)"
            )
        unprepared = (self._skipped and self._index == 0) or program.scales[k] != 1.0
        if unprepared and not self._scaled:
            more = (
                f"; ask for num_inference_steps={(self.num_inference_steps or 0) + 1}, whose first output is ignored"
                if self._skipped and self._index == 0 and program.scales[k] == 1.0
                else ""
            )
            raise ScheduleError(f"this pipeline does not call scale_model_input, which the schedule needs{more}")


def _handed_on(stock: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What other schedulers take from the stock one's configuration, defaults too: theirs may be others."""
    return {k: v for k, v in stock.items() if k not in own and not k.startswith("_")}


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in single, as diffusers does."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
