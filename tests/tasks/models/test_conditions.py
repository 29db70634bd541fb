"""What a model is asked for: labels, prompts, guidance; image i's condition depends on i alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from fewstep.errors import ConfigurationError, DataError
from fewstep.tasks.models.conditions import Conditions, join_prompts, read_prompts


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


def test_a_prompt_is_a_line_whatever_else_is_in_it(tmp_path: Path) -> None:
    odd = "a cat\x85 and\u2028 a\u2029 dog\x0b\x0c\x1c\x1d\x1e!"
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"\ufeff{odd}\r\n\r\nsecond\rthird\n".encode())
    assert Conditions(prompts=read_prompts(path)).prompt_list == (odd, "second", "third")


def test_only_prompts_that_were_once_read_otherwise_have_another_address() -> None:
    def plain(conditions: Conditions) -> str:
        return hashlib.sha256(conditions.model_dump_json().encode()).hexdigest()[:16]

    for text in ("a cat", "a cat\n\n a dog \n", "a\r\nb\rc"):
        assert Conditions(prompts=text).hash == plain(Conditions(prompts=text))
    for text in ("a\u2028cat", "a\x85b\nc"):
        assert Conditions(prompts=text).hash != plain(Conditions(prompts=text))


def test_prompts_of_a_list_are_a_line_each() -> None:
    assert Conditions(prompts=join_prompts(["a\u2028cat", "a dog"])).prompt_list == ("a\u2028cat", "a dog")
    for broken in ("a\nb", "a\rb", "", " ", 7, None):
        with pytest.raises(ConfigurationError, match="prompt 1 of the list"):
            join_prompts(["a cat", broken])


@pytest.mark.parametrize("field", ["prompts", "negative_prompt"])
def test_bytes_of_an_argument_that_are_no_text_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="no character"):
        Conditions.model_validate({field: b"d\xf6g".decode(errors="surrogateescape")})


def test_a_copy_with_other_fields_forgets_what_was_computed() -> None:
    first = Conditions(labels="3")
    assert first.hash
    second = first.model_copy(update={"labels": "4"})
    assert second.hash == Conditions(labels="4").hash != first.hash
