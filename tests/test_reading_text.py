"""Text of users is read by one rule: any mark of its encoding, any end of line, and nothing that is no text."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from fewstep.errors import DataError, ScheduleError
from fewstep.files import lines_of, read_json, read_text

TEXT = "a red cat\ntwo dögs, 猫 🐈\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
)
def test_every_marked_encoding_and_line_end_is_the_same_text(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a\ndög".encode("latin-1"), "byte 0xf6 at position 3, line 2, is no UTF-8"),
        ("“a”".encode("cp1252"), "byte 0x93 at position 0, line 1, is no UTF-8"),
        (TEXT.encode("utf-16-le"), "byte 0x00 at position 1, line 1: UTF-16 without its byte order mark?"),
        (TEXT.encode("utf-32-be"), "byte 0x00 at position 0, line 1"),
        (b"a\nb\0", "byte 0x00 at position 3, line 2"),
        ("a\0".encode("utf-16"), "a zero character at line 1"),
        (b"a\n" + codecs.BOM_UTF8 + b"b", "a byte order mark within the text at line 2"),
        (TEXT.encode("utf-16")[:-1], "is no UTF-16"),
        (b"\xed\xa0\x80", "is no UTF-8"),
        ("a".encode("utf-16") + b"\x00\xd8", "is no UTF-16"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ScheduleError, match="cannot read the recipe") as refused:
        read_text(tmp_path / "a.txt", "the recipe", ScheduleError)
    assert words in str(refused.value)
    assert str(tmp_path / "a.txt") in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("absent", "a\0b", "a" * 300, "."):
        with pytest.raises(DataError, match="cannot read"):
            read_text(tmp_path / name)


def test_lines_end_where_they_end() -> None:
    odd = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    assert odd.splitlines() != [odd]
    assert lines_of(odd) == [odd]
    assert lines_of("a\r\n\r\nb\rc\n\rd\n") == ["a", "", "b", "c", "", "d", ""]


def test_json_in_any_encoding_is_a_value_and_everything_else_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps({"ä": [1.5]}, ensure_ascii=False), encoding=encoding)
        assert read_json(path) == {"ä": [1.5]}
    for content in ("", "{", "[" * 100_000, "1" * 5000, "{'a': 1}"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"a\.json: it is no JSON"):
            read_json(path)
