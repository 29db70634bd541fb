"""Solver schedule and quantisation config chosen together: what is best for one depends on the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.search_spaces import evolution
from fewstep.search_spaces.genome import Genome, encode
from fewstep.search_spaces.quantization import QuantizationConfig
from fewstep.search_spaces.quantization_space import QuantizationSpace
from fewstep.search_spaces.solver_space import SolverSpace, Suggests

SOLVER_RATE, CONFIG_RATE = 0.12, 0.12


@dataclass(frozen=True)
class JointGenome:
    """A schedule's genome and the config of the network that it runs on."""

    solver: Genome
    config: QuantizationConfig

    @property
    def nfe(self) -> int:
        """Number of denoiser calls for one image."""
        return self.solver.nfe


@dataclass(frozen=True)
class JointSpace:
    """The product of the two spaces, whose parameters have different names. Every operation keeps the NFE."""

    solver: SolverSpace
    quantization: QuantizationSpace

    def suggest(self, trial: Suggests) -> JointGenome:
        """Draw a member through an Optuna trial."""
        return JointGenome(self.solver.suggest(trial), self.quantization.suggest(trial))

    def parameters(self, genome: JointGenome) -> dict[str, Any]:
        """Flat parameters of a genome: what `suggest` would have drawn."""
        return self.solver.parameters(genome.solver) | self.quantization.parameters(genome.config)

    def random(self, nfe: int, rng: Random) -> JointGenome:
        """Any member at an NFE."""
        return JointGenome(evolution.random_genome(self.solver, nfe, rng), self.quantization.random(rng))

    def mutate(self, genome: JointGenome, rng: Random) -> JointGenome:
        """Change the schedule, the config or both, each a third of the time."""
        which = rng.randrange(3)
        if which != 0:
            genome = replace(genome, solver=evolution.mutate(self.solver, genome.solver, rng, SOLVER_RATE))
        if which != 1:
            genome = replace(genome, config=self.quantization.mutate(genome.config, rng, CONFIG_RATE))
        return genome

    def cross(self, a: JointGenome, b: JointGenome, rng: Random) -> JointGenome:
        """Half the time one's schedule on the other's network, else both parts mixed decision by decision.

        The NFE is the first one's; schedules of different NFE or shape are not mixed.
        """
        if rng.random() < 0.5:
            return replace(a, config=self.quantization.member(b.config))
        solver = evolution.cross(self.solver, a.solver, b.solver, rng)
        return JointGenome(solver, self.quantization.cross(a.config, b.config, rng))

    def encode(self, genome: JointGenome) -> npt.NDArray[np.float32]:
        """Features (steps, F): those of every step, followed by the config's."""
        steps = encode(genome.solver)
        config = np.asarray(self.quantization.encode(genome.config), np.float32)
        return np.concatenate([steps, np.broadcast_to(config, (len(steps), len(config)))], axis=1)
