"""The notebook of the documentation runs from top to bottom, as a kernel would run its cells."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "quickstart.ipynb"


def _run(cells: list[dict[str, Any]]) -> list[Any]:
    """The value of each code cell's last expression, all run in one namespace."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None)  # type: ignore[attr-defined]
    return shown


SMALL = "budget=60_000", "budget=27_000"
"""What takes seconds in the place of a minute."""


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = NOTEBOOK.read_text()
    assert SMALL[0] in text
    notebook = json.loads(text.replace(*SMALL))
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")], "stored outputs would grow old"
    _, front, report, images, stock = _run(notebook["cells"])
    assert front["nfe"].tolist() == [3, 4]
    assert (front["low"] < front["value"]).all()
    assert report["found"].any()
    assert images.size == (8 * 48, 2 * 48)
    assert stock.value > front["value"].iloc[-1]
