"""An ODE solver as a sampler: what `tasks/flow/ode.py` runs, as data beside schedules."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fewstep.errors import ConfigurationError, ScheduleError
from fewstep.search_spaces.schedule import SolverSchedule

ADAPTIVE = "dopri5"
# Calls a step of the methods with a fixed number of steps.
FIXED_CALLS = {"euler": 1, "midpoint": 2, "heun": 2}
KIND = "ode"


@dataclass(frozen=True)
class OdeSettings:
    """Solver and accuracy.

    `method` is dopri5 (adaptive, to `atol` + `rtol` |y| in root mean square over an image's entries, in at most
    `max_steps` steps) or euler, midpoint or heun in a fixed number of `steps`, on equal steps of t (bent by a flow's
    shift) or on falling `times` in [0, 1], one more than steps. `control` is for dopri5: `image` gives every image
    steps of its own, so that its sample and its NFE depend on nothing else; `batch` takes common steps which are as
    short as the worst image needs, so that samples depend on the batch, within the tolerance. `guidance` goes before
    the scale that a model is asked for. Raises ConfigurationError for settings that cannot be.
    """

    method: str = ADAPTIVE
    steps: int = 0
    times: tuple[float, ...] = ()
    atol: float = 1e-5
    rtol: float = 1e-5
    control: Literal["image", "batch"] = "image"
    max_steps: int = 10_000
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.method != ADAPTIVE and self.method not in FIXED_CALLS:
            known = ", ".join([ADAPTIVE, *FIXED_CALLS])
            raise ConfigurationError(f"unknown ODE method {self.method!r}: choose one of {known}")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise ConfigurationError(f"guidance = {self.guidance}: give a scale of at least 0")
        if self.method == ADAPTIVE:
            if self.steps or self.times:
                raise ConfigurationError(
                    f"{ADAPTIVE} chooses its own steps: leave out steps and times, give atol, rtol"
                )
            if not (self.atol > 0 and self.rtol > 0 and self.max_steps > 0):
                raise ConfigurationError(
                    f"atol = {self.atol}, rtol = {self.rtol}, max_steps = {self.max_steps}: all must be positive"
                )
        elif self.times:
            falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
            if not (len(self.times) > 1 and falling and self.times[-1] >= 0 and self.times[0] <= 1):
                raise ConfigurationError(f"times {self.times}: give two or more that fall within [0, 1]")
            if self.steps not in (0, len(self.times) - 1):
                raise ConfigurationError(f"steps = {self.steps} but {len(self.times)} times: leave one of them out")
        elif self.steps < 1:
            raise ConfigurationError(f"steps = {self.steps}: {self.method} needs at least one step, or times")
        if self.control not in ("image", "batch"):
            raise ConfigurationError(f"unknown control {self.control!r}: choose image or batch")

    @property
    def name(self) -> str:
        """As the command line writes it: `dopri5` or METHOD@CALLS."""
        if self.method == ADAPTIVE:
            return ADAPTIVE if self.atol == self.rtol == 1e-5 else f"{ADAPTIVE} {self.atol:g}/{self.rtol:g}"
        return f"{self.method}@{self.nfe}"

    @property
    def nfe(self) -> int:
        """Denoiser calls an image on a model that says a velocity at t = 0 too; 0 for dopri5, which decides itself."""
        steps = len(self.times) - 1 if self.times else self.steps
        return FIXED_CALLS.get(self.method, 0) * steps

    @property
    def needs_statistics(self) -> bool:
        """Never: no part of it is the model's statistics."""
        return False

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits, different from every schedule's."""
        return hashlib.sha256(f"{KIND} {self.to_json()}".encode()).hexdigest()[:16]

    def guided(self, guidance: float | None) -> OdeSettings:
        """The same at another scale of guidance."""
        return replace(self, guidance=guidance)

    def to_json(self) -> str:
        """The settings as JSON; `parse_sampler` reads them back exactly."""
        return json.dumps({KIND: asdict(self)}, sort_keys=True)


Sampler = SolverSchedule | OdeSettings


def parse_sampler(text: str) -> Sampler:
    """A schedule or an ODE solver from its JSON; ScheduleError where it is neither."""
    if not text.startswith(f'{{"{KIND}"'):
        return SolverSchedule.from_json(text)
    try:
        fields: dict[str, Any] = json.loads(text)[KIND]
        return OdeSettings(**{**fields, "times": tuple(fields.get("times", ()))})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigurationError) as error:
        raise ScheduleError(f"not a valid ODE solver: {error}") from None


def parse_ode(text: str, atol: float = 1e-5, rtol: float = 1e-5) -> OdeSettings:
    """`dopri5`, or METHOD@CALLS as `heun@6`; ConfigurationError names what is possible."""
    method, at, calls = text.partition("@")
    each = FIXED_CALLS.get(method)
    if each is None:
        if at and method == ADAPTIVE:
            raise ConfigurationError(f"{text!r}: {ADAPTIVE} chooses its own calls; write {ADAPTIVE}")
        return OdeSettings(method, atol=atol, rtol=rtol)
    if not calls.isdecimal() or int(calls) < each or int(calls) % each:
        raise ConfigurationError(
            f"{text!r}: write {method}@CALLS; {method} makes {each} calls a step, so give a multiple of {each}"
        )
    return OdeSettings(method, int(calls) // each)


def with_guidance(sampler: Sampler, guidance: float | None) -> Sampler:
    """The sampler at its own scale of guidance, or at the model's (None)."""
    if isinstance(sampler, OdeSettings):
        return sampler.guided(guidance)
    return sampler.model_copy(update={"guidance": guidance})
