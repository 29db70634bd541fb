"""The space of edits: members are valid, equal edits have equal hashes, and parameters lead back to the edit."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.search_spaces.edit.space import EditSpace
from fewstep.search_spaces.schedule.presets import preset

SCHEDULE = preset("unipc-2-bh2", (-5.0, -3.0, -1.0, 1.0, 3.0))
BASE = EditConfig(step=-1.0, boundary=BoundaryConfig(images=100))
SPACE = EditSpace((-2.0, -1.0, 0.0), 100, BASE, (SCHEDULE,))


def drawn(seed: int, space: EditSpace = SPACE) -> tuple[EditConfig, dict[str, object]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return space.suggest(trial), dict(trial.params)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parameters_lead_back_to_the_edit(seed: int) -> None:
    config, parameters = drawn(seed)
    assert SPACE.suggest(optuna.trial.FixedTrial(parameters)) == config
    assert SPACE.config(SPACE.values(config)).hash == config.hash
    assert EditConfig.from_json(config.model_dump_json()) == config


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_is_not_relevant_has_no_say(seed: int) -> None:
    config, _ = drawn(seed)
    if not config.uses_h:
        assert config.strength_h == 0
    if not config.uses_z:
        assert (config.strength_z, config.rescale) == (0, False)
    if not config.eta:
        assert config.eta_window == (0.0, 1.0)


def test_the_schedules_are_among_the_ways_back() -> None:
    found = [drawn(seed)[0].generation for seed in range(60)]
    assert SCHEDULE in found
    assert any(isinstance(way, str) for way in found)


def test_kept_decisions_stay_as_in_the_base() -> None:
    space = EditSpace((-2.0, -1.0), 100, BASE, kept=("step", "inversion", "generation", "eta"))
    configs = [drawn(seed, space)[0] for seed in range(20)]
    assert {(c.step, c.inversion, c.generation, c.eta) for c in configs} == {
        (BASE.step, BASE.inversion, BASE.generation, 0.0)
    }
    assert len({c.strength_z for c in configs}) > 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_neighbours_are_members_that_differ_in_one_named_parameter(seed: int) -> None:
    config, _ = drawn(seed)
    own = SPACE.values(config)
    names = ("strength_z", "C", "images", "generation_calls")
    found = SPACE.neighbours(config, names)
    assert len({c.hash for c in found} | {config.hash}) == len(found) + 1
    for other in found:
        values = SPACE.values(other)
        (changed,) = (name for name in own if values[name] != own[name])
        assert changed in names
        assert SPACE.config(values) == other
    assert SPACE.neighbours(config, ()) == []
    kept = EditSpace(SPACE.steps, 100, BASE, kept=("strength", "boundary", "generation"))
    assert kept.neighbours(config, names) == []


def test_the_hash_follows_every_decision() -> None:
    changes = [
        {"step": -0.5},
        {"latent": "both"},
        {"strength_z": 1.0},
        {"inversion": "ddim/uniform-t@41"},
        {"generation": SCHEDULE},
        {"eta": 0.5},
        {"rescale": True},
        {"boundary": BoundaryConfig(C=2.0)},
    ]
    hashes = {BASE.hash, *(BASE.model_copy(update=change).hash for change in changes)}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"step": -1.0, "strength_h": 1.0}, "latent is 'z'"),
        ({"step": -1.0, "eta_window": (0.5, 0.5)}, "eta_window"),
        ({"step": float("nan")}, "step"),
        ({"step": -1.0, "eta": 2.0}, "eta"),
    ],
)
def test_edits_that_make_no_sense_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EditConfig.build(**fields)


def test_spaces_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown decision 'strenght'"):
        EditSpace((-1.0,), 100, BASE, kept=("strenght",))
    with pytest.raises(ConfigurationError, match="at least one edit step"):
        EditSpace((), 100, BASE)
