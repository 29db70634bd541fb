"""What the calibration of a quantised network wrote beside a study: bits by layer, error of its temporal features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.search_spaces.quantization import QuantizationConfig

FULL = 32
_ERRORS = ("time", "relative_error", "least", "most")


@dataclass(frozen=True)
class Covered:
    """The layers of one role at one number of bits, with their shares of all parameters and multiply-adds."""

    role: str
    weight_bits: int
    activation_bits: int
    layers: int
    parameters: float
    multiply_adds: float


@dataclass(frozen=True)
class KeptNetwork:
    """By role and bits, the most multiply-adds first; and by time the relative error of the temporal features.

    `temporal` has columns time, relative_error, least and most (of the projections kept best and worst); it is empty
    where the network has no such features, or an older version calibrated it: `told` says which.
    """

    covered: list[Covered]
    temporal: pd.DataFrame
    told: bool


def kept_network(folder: Path, config: QuantizationConfig | None) -> KeptNetwork | None:
    """Of that config in a study's folder; None where it keeps none."""
    if config is None:
        return None
    for path in sorted(folder.glob("quantized/*/quantization.json")):
        try:
            said = read_json(path)
            if QuantizationConfig.model_validate(said["config"]) == config:
                rows = [{name: float(row[name]) for name in _ERRORS} for row in said.get("temporal", ())]
                return KeptNetwork(_by_role(said["coverage"]), pd.DataFrame(rows, columns=_ERRORS), "temporal" in said)
        except (FewstepError, KeyError, TypeError, ValueError, AttributeError):
            continue  # another version's, or half removed: the tables are whole without it
    return None


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
