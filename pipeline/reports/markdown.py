"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import ConfigurationError
from fewstep.files import write_text
from fewstep.pipeline.reports.rows import FOUND, Row


def results_markdown(rows: Sequence[Row], note: str) -> str:
    """The table for a README: a row a method, a column an NFE, best value of each column in bold.

    A star marks what was judged on fewer images than the best.
    """
    most = max(r.images for r in rows)
    nfes = sorted({r.nfe for r in rows})
    methods = sorted({r.method for r in rows}, key=lambda m: (m != FOUND, m))
    cells = {(r.method, r.nfe): r for r in rows}
    best = {n: min((r for r in rows if r.nfe == n), key=lambda r: (-r.images, r.value)).method for n in nfes}
    lines = ["| method | " + " | ".join(f"NFE {n}" for n in nfes) + " |", "|---" * (len(nfes) + 1) + "|"]
    for method in methods:
        texts = []
        for n in nfes:
            row = cells.get((method, n))
            text = "" if row is None else f"{row.value:.2f}" + "*" * (row.images < most)
            if row is not None and row.low is not None and row.high is not None:
                text += f" ({row.low:.2f} to {row.high:.2f})"
            texts.append(f"**{text}**" if row is not None and best[n] == method else text)
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", note])


def insert_between_markers(path: Path, text: str, name: str = "results") -> None:
    """Replace what stands between the markers called `name` in a Markdown file; ConfigurationError without them."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text()
    if old.count(begin) != 1 or old.count(end) != 1:
        raise ConfigurationError(f"{path} needs the lines {begin} and {end} once each, where the table goes")
    head, tail = old.partition(begin)[0], old.partition(end)[2]
    write_text(path, f"{head}{begin}\n{text}\n{end}{tail}")
