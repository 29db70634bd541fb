"""Whatever a prompt file holds: the prompts that were written, each in its place, or an error that names the file."""

from __future__ import annotations

import codecs
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import ConfigurationError, DataError, ScheduleError
from fewstep.files import read_json
from fewstep.pipeline.study_file import read_study_file
from fewstep.search_spaces.schedule import load_schedule
from fewstep.tasks.models.conditions import Conditions, read_prompts

MARKED = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u00a0\u3000\t"
prompt = st.text(
    st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0\ufeff")),
    min_size=1,
    max_size=20,
).filter(str.strip)


@given(
    prompts=st.lists(prompt, min_size=1, max_size=8),
    encoding=st.sampled_from(sorted(MARKED)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
)
def test_prompts_come_back_each_in_its_place(
    prompts: list[str], encoding: str, end: str, last: bool, tmp_path: Path
) -> None:
    text = end.join(prompts) + end * last
    (tmp_path / "p.txt").write_bytes(MARKED[encoding] + text.encode(encoding))
    read = Conditions(prompts=read_prompts(tmp_path / "p.txt"))
    assert read.prompt_list == tuple(line.strip() for line in prompts)
    assert Conditions.model_validate_json(read.model_dump_json()).hash == read.hash


@given(data=st.data(), encoding=st.sampled_from(["latin-1", "cp1252", "utf-16-le", "utf-16-be"]))
def test_another_encoding_is_refused_or_says_the_same(data: st.DataObject, encoding: str, tmp_path: Path) -> None:
    codec = encoding if "16" not in encoding else "utf-8"
    letters = st.characters(codec=codec, exclude_characters="\n\r\0\ufeff\ufffe")
    text = data.draw(st.text(letters, min_size=1, max_size=30).filter(str.strip))
    (tmp_path / "p.txt").write_bytes(text.encode(encoding))
    try:
        found = read_prompts(tmp_path / "p.txt")
    except DataError as error:
        found = str(error)
    # Bytes that are UTF-8 by chance cannot be told from UTF-8.
    assert str(tmp_path / "p.txt") in found or found == text or found.encode() == text.encode(encoding)


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=60).map(lambda t: t.encode(errors="surrogatepass"))))
def test_arbitrary_bytes_are_text_or_an_error_for_every_reader(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    for read, error in (
        (read_prompts, DataError),
        (read_json, DataError),
        (load_schedule, ScheduleError),
        (read_study_file, ConfigurationError),
    ):
        try:
            found = read(path)  # type: ignore[operator]
        except error as problem:
            found = f"{problem}"
            assert str(path) in found
        if read is read_prompts:
            assert Conditions(prompts=found).prompt_list
