"""Which layers of a quantised candidate are held in few bits, as its calibration wrote beside the study's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.dashboards.web.places import Entry
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.search_spaces.quantization import QuantizationConfig

FULL = 32


@dataclass(frozen=True)
class Covered:
    """The layers of one role at one number of bits, with their shares of all parameters and multiply-adds."""

    role: str
    weight_bits: int
    activation_bits: int
    layers: int
    parameters: float
    multiply_adds: float


def coverage(entry: Entry, config: QuantizationConfig | None) -> list[Covered]:
    """By role and bits, the most multiply-adds first; empty where the study keeps no network of that config."""
    if config is None:
        return []
    for path in sorted(entry.folder.glob("quantized/*/quantization.json")):
        try:
            told = read_json(path)
            if QuantizationConfig.model_validate(told["config"]) == config:
                return _by_role(told["coverage"])
        except (FewstepError, KeyError, TypeError, ValueError, AttributeError):
            continue  # another version's, or half removed: the tables are whole without it
    return []


def _by_role(layers: Sequence[Mapping[str, Any]]) -> list[Covered]:
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for layer in layers:
        bits = [int(layer[name]) or FULL for name in ("weight_bits", "activation_bits")]
        groups.setdefault((str(layer["role"]), bits[0], bits[1]), []).append(layer)
    wholes = [sum(int(layer[name]) for layer in layers) or 1 for name in ("parameters", "multiply_adds")]
    found = [
        Covered(
            *key,
            len(own),
            sum(int(layer["parameters"]) for layer in own) / wholes[0],
            sum(int(layer["multiply_adds"]) for layer in own) / wholes[1],
        )
        for key, own in groups.items()
    ]
    return sorted(found, key=lambda group: -group.multiply_adds)
