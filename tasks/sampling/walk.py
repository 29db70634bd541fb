"""One run of a schedule, step by step, as a scheduler is called: which row is next, and what it needs.

A run begins at the first of the times or at a later one; samples are (B, ...). Places in `times` count the calls of the
network, nodes the points of the tables, which an analytic first point is one of too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule
from fewstep.search_spaces.schedule.restart import nodes, restarted
from fewstep.tasks.models.noise_families import FlowMatching
from fewstep.tasks.models.noise_schedule import NoiseSchedule
from fewstep.tasks.models.statistics import ModelStatistics
from fewstep.tasks.sampling.compile import Compiler, SolverTables, compile_schedule, is_late
from fewstep.tasks.sampling.execute import Program

TIME_TOLERANCE = 1e-3
NEARLY = 0.01


class Walk:
    """A schedule compiled for a model, and how far it has been walked.

    `times` are those told to the network, `sigmas` the noise's share of a flow, or its ratio to the signal, at each and
    at the end. `place` is the next step's place, None before the first. `prepared` says that the network's input of
    this step was made by `model_input`, `scaled` that the pipeline itself asks for it; `noised` that a sample was
    noised for the first place. Pure noise that the pipeline did not scale to the prior is scaled here.
    """

    def __init__(
        self, schedule: SolverSchedule, noise: NoiseSchedule, output: str, statistics: ModelStatistics | None
    ) -> None:
        self.schedule, self._noise, self._output, self._statistics = schedule, noise, output, statistics
        # Of an image with noise on it: for noise alone it is refused where a run begins.
        self._late = is_late(schedule, noise)
        tables = Compiler(schedule, noise, output, statistics).run if self._late else None
        self._tables = tables() if tables else compile_schedule(schedule, noise, output, statistics)
        self._first = 0 if self._tables.called[0] else 1
        self.times = self._tables.times[self._first :]
        self.lambdas = [node.lambda_ for node in nodes(schedule)][self._first :]
        self.sigmas = [sigma_of(lambda_, noise) for lambda_ in (*self.lambdas, schedule.lambdas[-1])]
        self.place: int | None = None
        self.prepared = self.scaled = self.noised = False
        self._program: Program | None = None
        self._held: dict[int, Tensor] = {}
        self._node, self._idle, self._analytic, self._factor = 0, 0, False, 1.0

    @property
    def changes_inputs(self) -> bool:
        """Whether the network is to be given anything but the sample at any step."""
        return self._first > 0 or any(s != 1.0 for s in (self._tables.prior_scale, *self._tables.input_scales))

    @property
    def changes_input(self) -> bool:
        """Whether it is at this step, or will be later."""
        later = self._tables.input_scales[self._first + (self.place or 0) :]
        return self._analytic or any(scale != 1.0 for scale in (self._factor, *later))

    def spare(self) -> bool:
        """Whether the network may see the sample as it is at this step, for a prior that is nearly of its size."""
        scale = self._tables.input_scales[self._first + (self.place or 0)]
        spared = not self._analytic and scale == 1.0 and abs(self._factor - 1.0) <= NEARLY
        self.prepared = self.prepared and not spared
        return spared

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self.place == len(self.times)

    def places(self, timestep: float) -> list[int]:
        """Where in `times` that time stands."""
        return [i for i, time in enumerate(self.times) if is_time(timestep, time)]

    def arrive(self, timestep: Any, begin: int | None, sample: Tensor, is_scaled: bool = True) -> None:
        """Begin the run, at place `begin` or where `timestep` says, or check that `timestep` is the next one's.

        `is_scaled`: whether pure noise comes scaled to the prior.
        """
        told = None if timestep is None else _one(timestep)
        if self.place is None or (self.is_over and told is not None and is_time(told, self.times[0])):
            self._begin(self._place(told, begin), sample, is_scaled)
        if self.is_over:
            raise ScheduleError(f"all {len(self.times)} steps are done: call set_timesteps before the next run")
        assert self.place is not None
        if told is not None and not is_time(told, self.times[self.place]):
            raise ScheduleError(
                f"step {self.place} is at time {self.times[self.place]:.6g}, not {told:.6g}: the steps of a schedule "
                "are taken in order, from where a run begins to its end"
            )

    def model_input(self, sample: Tensor) -> Tensor:
        """What the network is given at this step in place of `sample`, whose batch may be doubled."""
        scale = self._tables.input_scales[self._first + (self.place or 0)]
        if not self._analytic and scale == self._factor == 1.0:
            return sample
        return (self._at(sample) * scale).to(sample.dtype)

    def step(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The next sample and the x0 that the network's `output` means; the last sample is taken for its own x0."""
        assert self.place is not None
        here = self._first + self.place
        if not self.prepared and (self._analytic or self._tables.input_scales[here] != 1.0):
            raise ScheduleError("the schedule changes the network's input: give it what scale_model_input returns")
        if not self.prepared:
            # The network saw the sample as it is.
            self._factor = 1.0
        node, given = self._at(sample), wide(output)
        if self._idle:
            self._idle, following = self._idle - 1, node
        else:
            following, given = self._row(node, given, wide(sample))
        self._factor = 1.0
        self.place, self.prepared = self.place + 1, False
        x0_x, x0_o = self._tables.clean[here]
        x0 = following if self.is_over else x0_x * node + x0_o * given
        return following.to(sample.dtype), x0.to(sample.dtype)

    def _row(self, node: Tensor, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        program, k = self._program, self._node
        assert program is not None
        if self._analytic:
            self._held[0], self._analytic = sample * self._factor, False
        self._held[2 * k] = node
        self._held[2 * k + 1] = output = program.limited(k, node, output)
        following = program.next_node(k, self._held)
        for index in program.expired[k]:
            self._held.pop(index, None)
        self._node += 1
        return following, output

    def _at(self, sample: Tensor) -> Tensor:
        """The current node: `sample`, but before an analytic first step the node that this step makes of it."""
        if self._analytic:
            assert self._program is not None
            return self._program.next_node(0, {0: wide(sample) * self._factor})
        return wide(sample) if self._factor == 1.0 else wide(sample) * self._factor

    def _place(self, told: float | None, begin: int | None) -> int:
        if told is None:
            return begin or 0
        there = self.places(told)
        if not there:
            times = ", ".join(f"{time:.6g}" for time in self.times)
            raise ScheduleError(f"time {told:.6g} is none of this run's, which are {times}")
        return begin if begin in there else there[0]

    def _begin(self, place: int, sample: Tensor, is_scaled: bool) -> None:
        self.place, self._held, self._node, self._idle = place, {}, 0, 0
        tables: SolverTables | None = self._tables
        pure = place == 0 and not self.noised
        if pure and self._late:
            raise ScheduleError(
                f"the schedule starts at lambda = {self.schedule.lambdas[0]:.6g}, this model's noise at "
                f"{self._noise.lambda_start:.6g}: it was found for an image with noise on it, call it with the "
                "strength that it was found at"
            )
        self._factor = self._tables.prior_scale if pure and not is_scaled else 1.0
        self._analytic = pure and self._first > 0
        if self._analytic:
            self._node = 1
        elif place or self._first:
            rest, self._idle = restarted(self.schedule, self._first + place)
            tables = Compiler(rest, self._noise, self._output, self._statistics).run() if rest else None
        self.noised = False
        if tables is not None:
            _check_shape(tables, sample)
            self._program = Program(tables, sample.device)


def sigma_of(lambda_: float, noise: NoiseSchedule) -> float:
    """The noise's share of a flow, or its ratio to the signal: what diffusers and others call sigma."""
    alpha, sigma = noise.alpha_sigma(lambda_)
    return sigma if isinstance(noise, FlowMatching) else sigma / alpha


def is_time(told: float, time: float) -> bool:
    """Whether a time that a pipeline tells, in single precision, is `time`."""
    return abs(told - time) <= TIME_TOLERANCE * max(1.0, abs(time))


def wide(x: Tensor) -> Tensor:
    """Half precision is summed in single, as diffusers does."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _one(timestep: Any) -> float:
    """A timestep as a number; one a sample must be the same for all."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    values: Sequence[float] = timestep.flatten().tolist()
    if len(set(values)) != 1:
        raise ConfigurationError(f"timestep {tuple(timestep.shape)}: a schedule has one time for the whole batch")
    return float(values[0])


def _check_shape(tables: SolverTables, sample: Tensor) -> None:
    pixels = tables.P.shape[2:] or (tables.bias.shape[1:] if tables.bias is not None else ())
    if pixels and tuple(sample.shape[1:]) != tuple(pixels):
        raise ConfigurationError(
            f"the model's statistics are per pixel of {'x'.join(map(str, pixels))}, the sample is "
            f"{'x'.join(map(str, sample.shape[1:]))}: sample at the size that they were taken at"
        )
