"""How networks are quantised: configs, and the space of them."""

from fewstep.search_spaces.quantization.config import (
    COVERAGES,
    FULL_PRECISION,
    MOST_BITS,
    NAME,
    PROCEDURES,
    Bits,
    QuantizationConfig,
    named,
    parse_config,
)

__all__ = [
    "COVERAGES",
    "FULL_PRECISION",
    "MOST_BITS",
    "NAME",
    "PROCEDURES",
    "Bits",
    "QuantizationConfig",
    "named",
    "parse_config",
]
