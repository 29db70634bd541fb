"""What may be chosen when a network is quantised: bits, coverage, ranges, and how the rounding is found.

Source: TFMQ-DM (2311.16503): temporal information block (TIB), temporal information aware reconstruction
(TIAR), finite set calibration (FSC). `PROCEDURES` and `COVERAGES` are named sets of these choices.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fewstep.errors import ConfigurationError
from fewstep.files import read_text

FULL_PRECISION = 32
# The most bits of a layer that is not in full precision.
MOST_BITS = 8
NAME = re.compile(r"w(\d+)a(\d+)-([a-z]+)-([a-z]+)")

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]


class QuantizationConfig(BaseModel):
    """How a network is quantised. 32 bits mean full precision. The same config and data give the same codes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: Bits = 4
    activation_bits: Bits = 8
    edge_bits: Bits = Field(8, description="weights and activations of the first and the last layer")
    allocation: Literal["even", "sensitivity"] = Field(
        "even", description="sensitivity: weight_bits are a mean, and layers that change the output more get more"
    )
    # What is covered.
    shortcuts: bool = Field(True, description="convolutions of residual shortcuts")
    samplers: bool = Field(True, description="down- and upsampling convolutions")
    attention: bool = Field(True, description="attention's projections")
    matmuls: bool = Field(False, description="the two products inside attention")
    split_skips: bool = Field(False, description="the halves of a skip concatenation get grids of their own")
    # Grids.
    weight_range: Literal["minmax", "search"] = "search"
    activation_range: Literal["minmax", "ema", "percentile", "mse"] = "ema"
    granularity: Literal["tensor", "token"] = Field("tensor", description="token: a range a row, found at run time")
    momentum: float = Field(0.95, ge=0, lt=1, description="of the moving average `ema`")
    percentile: float = Field(99.9, gt=50, le=100)
    # How weights are rounded.
    solver: Literal["adaround", "descent", "hybrid"] = Field(
        "descent",
        description="Adam on rounding variables, or integer least squares layer after layer; "
        "hybrid: least squares for the temporal information block, Adam for the rest",
    )
    sweeps: PositiveInt = Field(6, description="of coordinate descent over a layer's codes, at most")
    restarts: NonNegativeInt = Field(30, description="perturbed descents of the temporal information block's layers")
    # The temporal information block.
    tib: Literal["nearest", "layers", "tiar", "table"] = Field(
        "tiar", description="how the block's weights are rounded; table: its outputs are stored instead"
    )
    tib_bits: Bits | None = Field(None, description="the block's weight bits, where they are not weight_bits")
    tiar_iterations: NonNegativeInt = 2000
    tiar_rate: float = Field(3e-3, gt=0)
    fsc: Literal["none", "tib", "all"] = Field("all", description="which activations have a grid for each timestep")
    # Reconstruction of everything else.
    reconstruction: Literal["none", "layer", "block"] = "block"
    iterations: NonNegativeInt = 400
    rate: float = Field(1e-2, gt=0)
    batch: PositiveInt = 32
    rounding_weight: float = Field(0.01, ge=0)
    warmup: float = Field(0.2, ge=0, lt=1)
    # Calibration data.
    images: PositiveInt = Field(64, description="trajectories")
    steps: NonNegativeInt = Field(0, description="denoiser calls of each that are used; 0: all")
    seed: NonNegativeInt = 3_000_017

    @model_validator(mode="after")
    def _allots_bits(self) -> Self:
        if self.allocation != "even" and self.weight_bits >= MOST_BITS:
            raise ValueError(
                f"bits are allotted to layers up to {MOST_BITS} a weight: with weight_bits {self.weight_bits} leave "
                "allocation away"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Configs without it are named by what they were before there was one.
        fields: dict[str, Any] = plain(self)
        return fields if self.allocation != "even" else {k: v for k, v in fields.items() if k != "allocation"}

    @property
    def hash(self) -> str:
        """Content address: 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """`w4a8-tfmq-full` where the config is a named one, `w4a8-HASH` otherwise."""
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        for procedure, fields in PROCEDURES.items():
            if fields.get("allocation", "even") != self.allocation:
                # Not every number of bits can be allotted.
                continue
            for coverage in COVERAGES:
                if named(f"{bits}-{procedure}-{coverage}") == self:
                    return f"{bits}-{procedure}-{coverage}"
        return f"{bits}-{self.hash[:8]}"

    @classmethod
    def build(cls, **fields: Any) -> QuantizationConfig:
        """Construct; ConfigurationError with the first problem instead of pydantic's error."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigurationError(f"quantisation: {_first_problem(error)}") from None

    @classmethod
    def from_json(cls, text: str) -> QuantizationConfig:
        """Read what `model_dump_json` wrote; ConfigurationError where it is no config."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(f"this is no quantisation config: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r}: choose of {', '.join(QuantizationConfig.model_fields)}"
    return f"{where}: {first['msg']}, got {first['input']!r}".removeprefix(": ")


PROCEDURES: dict[str, dict[str, Any]] = {
    # Rounding to nearest on the range from the smallest to the largest value.
    "naive": {
        "weight_range": "minmax",
        "activation_range": "minmax",
        "tib": "nearest",
        "fsc": "none",
        "reconstruction": "none",
    },
    # BRECQ's reconstruction as Q-Diffusion (2302.04304) uses it: embedding layers are layers like any other.
    "qdiffusion": {"tib": "layers", "fsc": "none", "solver": "adaround", "iterations": 1000},
    # TFMQ-DM as the paper describes it.
    "published": {"fsc": "tib", "solver": "adaround", "iterations": 1000},
    # The same with both reconstructions solved as integer least squares, and, as the authors' program does, a grid a
    # timestep for every activation.
    "tfmq": {},
    # `tfmq` with bits by layer, as many on average: more where rounding changes the output more.
    "mixed": {"allocation": "sensitivity"},
    # The temporal block of `tfmq`, AdaRound elsewhere on batches of 8: how far rounding variables travel is a matter of
    # Adam's steps, not of the rows in each.
    "hybrid": {"solver": "hybrid", "iterations": 1000, "batch": 8},
}
COVERAGES: dict[str, dict[str, Any]] = {
    # What the authors' program quantises; `paper` is what the paper says; `full` leaves nothing out.
    "released": {"shortcuts": False, "samplers": False, "attention": False, "edge_bits": 32},
    "paper": {},
    "full": {"matmuls": True, "split_skips": True},
}


def named(name: str, **changes: Any) -> QuantizationConfig:
    """The config of a name such as `w4a8-tfmq-full`, with changes; ConfigurationError where it is none."""
    match = NAME.fullmatch(name)
    if match is None or match[3] not in PROCEDURES or match[4] not in COVERAGES:
        raise ConfigurationError(
            f"unknown quantisation {name!r}: write wBITSaBITS-PROCEDURE-COVERAGE with a procedure of "
            f"{', '.join(PROCEDURES)} and a coverage of {', '.join(COVERAGES)}, as w4a8-tfmq-full"
        )
    bits = {"weight_bits": int(match[1]), "activation_bits": int(match[2])}
    return QuantizationConfig.build(**{**bits, **PROCEDURES[match[3]], **COVERAGES[match[4]], **changes})


def parse_config(text: str) -> QuantizationConfig:
    """The config of a JSON file, or of a name with changes: `w4a8-tfmq-full+fsc=none+iterations=0`.

    ConfigurationError says what is wrong with it.
    """
    if text.endswith(".json"):
        return QuantizationConfig.from_json(read_text(text, "the quantisation config", ConfigurationError))
    name, *changes = text.split("+")
    fields: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals or field not in QuantizationConfig.model_fields:
            valid = ", ".join(QuantizationConfig.model_fields)
            raise ConfigurationError(f"{text!r}: {change!r} changes nothing that is known; write field=value: {valid}")
        try:
            fields[field] = json.loads(value)
        except ValueError:
            fields[field] = value
    return named(name, **fields)
