"""Quantisation configs: names, addresses, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.quantization import COVERAGES, PROCEDURES, Bits, QuantizationConfig, named

BITS = get_args(Bits)
NAMES = st.builds(
    "w{}a{}-{}-{}".format,
    st.sampled_from(BITS),
    st.sampled_from(BITS),
    st.sampled_from(sorted(PROCEDURES)),
    st.sampled_from(sorted(COVERAGES)),
).filter(lambda name: not name.startswith(("w8a", "w32a")) or "-mixed-" not in name)
# Another value than the default for every field.
OTHERS: dict[str, Any] = {
    "weight_bits": 3,
    "activation_bits": 6,
    "edge_bits": 32,
    "allocation": "sensitivity",
    "shortcuts": False,
    "samplers": False,
    "attention": False,
    "matmuls": True,
    "split_skips": True,
    "weight_range": "minmax",
    "solver": "adaround",
    "sweeps": 2,
    "restarts": 3,
    "activation_range": "mse",
    "granularity": "token",
    "momentum": 0.9,
    "percentile": 99.0,
    "tib": "table",
    "tib_bits": 8,
    "tiar_iterations": 1,
    "tiar_rate": 1e-4,
    "fsc": "tib",
    "reconstruction": "layer",
    "iterations": 1,
    "rate": 1e-3,
    "batch": 1,
    "rounding_weight": 0.1,
    "warmup": 0.0,
    "images": 1,
    "steps": 5,
    "seed": 0,
}


@given(NAMES)
def test_a_name_is_the_name_of_its_config(name: str) -> None:
    assert named(name).name == name


@given(NAMES)
def test_json_gives_the_config_back(name: str) -> None:
    config = named(name, momentum=0.5)
    assert QuantizationConfig.from_json(config.model_dump_json()) == config
    assert QuantizationConfig.from_json(config.model_dump_json()).hash == config.hash


def test_every_field_changes_the_hash_and_the_name() -> None:
    assert set(OTHERS) == set(QuantizationConfig.model_fields)
    configs = [QuantizationConfig(), *(QuantizationConfig.build(**{field: value}) for field, value in OTHERS.items())]
    assert len({config.hash for config in configs}) == len(configs)
    assert len({config.name for config in configs}) == len(configs)


def test_a_config_with_changes_has_no_procedure_in_its_name() -> None:
    config = named("w4a8-tfmq-full", momentum=0.5)
    assert config.name == f"w4a8-{config.hash[:8]}"


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        QuantizationConfig().weight_bits = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["", "tfmq", "w4a8", "w4a8-tfmq", "w4a8-other-full", "w4a8-tfmq-none", "W4A8-tfmq-full"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        named(name)
    for known in (*PROCEDURES, *COVERAGES):
        assert known in str(caught.value)


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_other_bits_are_refused_with_the_possible_ones(bits: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        named(f"w{bits}a8-tfmq-full")
    assert "weight_bits" in str(caught.value)
    assert all(str(known) in str(caught.value) for known in BITS)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        QuantizationConfig.build(iteration=3)
    assert all(field in str(caught.value) for field in ("'iteration'", *QuantizationConfig.model_fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [("momentum", 1.0), ("percentile", 50.0), ("warmup", 1.0), ("rate", 0.0), ("images", 0), ("tib", "some")],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=field):
        QuantizationConfig.build(**{field: value})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_bits": 9}', '{"other": 1}'])
def test_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no quantisation config"):
        QuantizationConfig.from_json(text)


def test_the_coverages_leave_out_what_they_say() -> None:
    released, paper, full = (named(f"w4a8-tfmq-{coverage}") for coverage in ("released", "paper", "full"))
    assert not any((released.shortcuts, released.samplers, released.attention, released.matmuls))
    assert released.edge_bits == 32
    assert all((paper.shortcuts, paper.samplers, paper.attention))
    assert (paper.edge_bits, paper.matmuls) == (8, False)
    assert full.matmuls
    assert full.split_skips
