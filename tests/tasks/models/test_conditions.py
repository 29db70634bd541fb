"""What a model is asked for: labels, prompts, guidance; image i's condition depends on i alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.models.conditions import Conditions, read_prompts


@dataclass(frozen=True)
class Model:
    """What a model can be asked for."""

    classes: int | None
    text: bool = False
    null_label: int | None = 10
    shown: str = ""
    embeds_guidance: bool = False


def test_balanced_labels_go_round_and_one_label_stays() -> None:
    assert [Conditions(labels="balanced").label(i, 3) for i in range(5)] == [0, 1, 2, 0, 1]
    assert [Conditions(labels="7").label(i, 10) for i in range(3)] == [7, 7, 7]
    assert Conditions().label(4, 10) is None


def test_nothing_asked_for_has_no_hash_and_everything_else_one_of_its_own() -> None:
    asked = [
        Conditions(labels="balanced"),
        Conditions(labels="1"),
        Conditions(labels="balanced", guidance=2.0),
        Conditions(prompts="a cat"),
        Conditions(prompts="a cat", negative_prompt="grey"),
        Conditions(labels="1", classifier="folder", classifier_scale=1.0),
    ]
    assert Conditions().hash == ""
    assert len({c.hash for c in asked} | {""}) == len(asked) + 1
    assert Conditions.model_validate_json(asked[2].model_dump_json()).hash == asked[2].hash


def test_prompts_are_lines_without_the_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\n\n  two dögs \n", encoding="utf-8")
    assert Conditions(prompts=read_prompts(path)).prompt_list == ("a red cat", "two dögs")
    assert read_prompts(None) == ""


def test_a_prompt_file_that_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the prompts .*none\.txt"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="cannot read"):
        read_prompts(tmp_path / "binary.txt")


@pytest.mark.parametrize(
    ("conditions", "classes", "text", "words"),
    [
        (Conditions(labels="balanced"), None, False, "trained without labels"),
        (Conditions(labels="10"), 10, False, "a number below 10"),
        (Conditions(labels="cat"), 10, False, "a number below 10"),
        (Conditions(labels="-1"), 10, False, "a number below 10"),
        (Conditions(), None, True, "needs prompts"),
        (Conditions(prompts="a cat"), 10, False, "takes no prompts"),
        (Conditions(labels="1", classifier_scale=1.0), 10, False, "--classifier FOLDER"),
        (Conditions(classifier="folder", classifier_scale=1.0), 10, False, "--labels"),
        (Conditions(guidance=2.0), 10, False, "nothing to lead to"),
        (Conditions(negative_prompt="a dog"), 10, False, "leave --negative-prompt out"),
    ],
)
def test_what_a_model_cannot_be_asked_for(conditions: Conditions, classes: int | None, text: bool, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        conditions.check(Model(classes, text))


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (Conditions(), "no label that means none"),
        (Conditions(labels="balanced", guidance=2.0), "guidance 2 needs a null label"),
        (Conditions(labels="9", guidance=0.0), "guidance 0 needs a null label"),
    ],
)
def test_a_model_without_a_null_label_is_asked_for_labels_alone(conditions: Conditions, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        conditions.check(Model(10, null_label=None))
    Conditions(labels="balanced").check(Model(10, null_label=None))
    Conditions(labels="9").check(Model(10, null_label=None))


def test_a_model_that_is_told_its_guidance_takes_no_negative_prompt() -> None:
    told = Model(None, text=True, embeds_guidance=True)
    Conditions(prompts="a cat", guidance=7.5).check(told)
    with pytest.raises(ConfigurationError, match="without a negative prompt"):
        Conditions(prompts="a cat", negative_prompt="a dog").check(told)


@pytest.mark.parametrize("field", ["guidance", "classifier_scale"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_scales_are_finite_and_not_negative(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Conditions.model_validate({field: value})
