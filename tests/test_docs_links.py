"""Links of the documentation lead somewhere, on GitHub and on the built site, and every page can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

BLOCK = re.compile(r"^```[^\n]*\n.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


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


def _toctree(page: Path) -> list[Path]:
    """The pages that the toctrees of a page name, in their order."""
    lines = [line for tree in TOCTREE.findall(page.read_text()) for line in tree.splitlines()]
    return [(page.parent / f"{line}.md").resolve() for line in lines if line and not line.startswith(":")]


def test_the_site_lists_every_page_once() -> None:
    listed = [page for place in DOCS.rglob("*.md") for page in _toctree(place)]
    pages = {page for page in DOCS.rglob("*.md") if page != DOCS / "index.md"}
    assert len(listed) == len(set(listed))
    assert {_name(page) for page in listed} == {_name(page) for page in pages}, "docs/index.md lists the site's pages"


def test_no_page_takes_a_name_of_sphinx() -> None:
    made = {"search", "genindex", "modindex"}
    assert not [page.name for page in DOCS.glob("*.md") if page.stem in made], (
        "Sphinx writes a page of that name itself"
    )
