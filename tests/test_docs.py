"""What the documentation says is so: its commands run, its options exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HOW_TO = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *HOW_TO, *sorted((ROOT / "docs" / "lab").glob("*.md"))]
MOST_WORDS = 900
CLI = (sys.executable, "-P", "-m", "fewstep.pipeline.cli")

NOT_RUN = {
    "make ": "makes an environment, downloads gigabytes or trains for hours",
    "pip install ": "changes the environment that the tests run in",
}
"""How lines of the README's sh blocks begin that are not run, and why."""

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"--[a-z][a-z-]+")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text())


def _lines(text: str) -> list[str]:
    """The commands of a sh block, without their comments."""
    joined = text.replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


def _script() -> str:
    """The README as one program: Python as it stands, commands as subprocesses, in the order of the page."""
    parts = ["import subprocess"]
    for language, text in _blocks(README):
        if language == "python":
            parts.append(text)
        elif language == "sh":
            for line in _lines(text):
                if not line.startswith(tuple(NOT_RUN)):
                    program, *arguments = shlex.split(line)
                    assert program == "fewstep", f"{line!r}: only fewstep's own commands run here"
                    parts.append(f"subprocess.run({[*CLI, *arguments]!r}, check=True)")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    for name in ("docs", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = _script()
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=590, env=os.environ
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}\nof this program:\n{code}"
    for made in ("clothes.png", "runs/first/schedules/nfe4.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / made).is_file(), f"the README's commands did not make {made}"


def test_every_block_of_the_readme_is_of_a_known_language() -> None:
    assert {language for language, _ in _blocks(README)} == {"sh", "python"}
    assert README.read_text().count("```") == 2 * len(_blocks(README))


def test_python_in_the_documentation_compiles() -> None:
    for page in PAGES:
        for language, text in _blocks(page):
            if language == "python":
                compile(text, _name(page), "exec")


@cache
def _help(command: str) -> str:
    asked = subprocess.run([*CLI, *command.split(), "--help"], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, f"fewstep {command}: {asked.stderr}"
    return asked.stdout


def _options_of(pages: list[Path]) -> dict[str, set[str]]:
    """Command -> options that the sh blocks of these pages give it."""
    used: dict[str, set[str]] = defaultdict(set)
    for page in pages:
        for language, text in _blocks(page):
            for line in _lines(text) if language == "sh" else []:
                if line.startswith("fewstep "):
                    words = line.split()[1:]
                    command = " ".join(words[:2] if words[0] in ("edit", "schedule") else words[:1])
                    used[command] |= set(OPTION.findall(line))
    return used


def test_every_option_of_the_readme_exists() -> None:
    used = _options_of([README])
    assert used, "the README shows no command"
    for command, options in used.items():
        assert options - set(OPTION.findall(_help(command))) == set(), f"fewstep {command}"
    inline = {option for code in re.findall(r"`([^`\n]+)`", README.read_text()) for option in OPTION.findall(code)}
    known = {option for command in used for option in OPTION.findall(_help(command))}
    assert inline - known == set()


@pytest.mark.slow
def test_every_option_of_the_documentation_exists() -> None:
    wrong = {
        command: missing
        for command, options in sorted(_options_of(HOW_TO).items())
        if (missing := options - set(OPTION.findall(_help(command))))
    }
    assert wrong == {}


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


def test_no_command_of_the_readme_is_longer_than_a_line() -> None:
    for language, text in _blocks(README):
        if language == "sh":
            assert [line for line in text.splitlines() if line.endswith("\\") or len(line) > 120] == []


def _anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def _anchors(path: Path) -> set[str]:
    text = re.sub(BLOCK, "", path.read_text())
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(re.sub(BLOCK, "", page.read_text())):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{_name(page)} links to {target}"
        if anchor:
            assert anchor in _anchors(path), f"{_name(page)} links to {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set(), [README]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in LINK.findall(page.read_text()):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.is_file():
                todo.append(path)
    assert [_name(page) for page in PAGES if page not in seen] == []
