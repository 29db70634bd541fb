"""Tables of edits as Markdown: all of it for a page, or the found edits alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fewstep.pipeline.editing_table import (
    DDIM,
    FOUND,
    NONE,
    NOTES,
    READABLE,
    REAL,
    STOCK,
    SWEEP,
    AttributeResult,
    EditRow,
    StepRow,
)
from fewstep.pipeline.reports.provenance import footnote
from fewstep.tasks.editing.radius import CRITERIA

CHOOSING = (FOUND, *CRITERIA, READABLE)


def page(results: Sequence[AttributeResult], command: str, seed: int) -> str:
    """Methods, what the found edits gain over others, edit steps, and how all of it was made."""
    rows = [row for r in results for row in r.rows]
    parts = [_methods(rows), "Found less the other on the same images:", _gains(rows)]
    parts += [
        "Balance of the found edit at other steps, in brackets the time where the role chooses it:",
        _steps(results),
    ]
    parts += ["What the balance lacks there of the best of the sweep, on the same images:", _gaps(results)]
    parts += [f"Its {rows[0].metric} there, under the best of the sweep the lowest of any step:", _distances(results)]
    images = f"{rows[0].images} images an attribute, {results[0].steps[0].images} for each step"
    made = footnote(command, {"search and report": seed}, NOTES)
    return "\n\n".join([*parts, f"Held-out images, {images}. {made}."])


def summary(results: Sequence[AttributeResult], command: str, seed: int) -> str:
    """The found edits beside the same by DDIM's 40 + 40 calls, one line an attribute."""
    lines = [
        "| attribute | calls | success | by DDIM 40 + 40 | difference | identity | by DDIM 40 + 40 | difference |",
        "|---" * 8 + "|",
    ]
    for result in results:
        by_method = {row.method: row for row in result.rows}
        found, other = by_method[FOUND], by_method[DDIM]
        cells = [found.attribute, str(found.nfe)]
        for name in ("success", "identity"):
            cells += [_with_ends(found, name), f"{getattr(other, name):.2f}", _with_ends(other, f"{name}_gain", "+")]
        lines.append("| " + " | ".join(cells) + " |")
    count = results[0].rows[0].images
    made = footnote(command, {"search and report": seed}, NOTES)
    return "\n".join([*lines, "", f"{count} held-out images an attribute; differences are paired. {made}."])


def _with_ends(row: EditRow | StepRow, name: str, sign: str = "") -> str:
    value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
    return "" if value is None else f"{value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _methods(rows: Sequence[EditRow]) -> str:
    lines = [
        f"| attribute | method | calls | success | identity | {rows[0].metric} | difference to the original |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        real = row.method == REAL
        distance = f"{row.frechet:.0f}"
        if row.frechet_low is not None and row.frechet_high is not None:
            distance += f" ({row.frechet_low:.0f} to {row.frechet_high:.0f})"
        cells = [
            row.attribute,
            row.method,
            "" if real else str(row.nfe),
            f"{row.success:.2f}" if real else _with_ends(row, "success"),
            "" if real else _with_ends(row, "identity"),
            distance,
            "" if real else f"{row.difference:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gains(rows: Sequence[EditRow]) -> str:
    lines = ["| attribute | other | its calls | success | identity |", "|---" * 5 + "|"]
    lines += [
        f"| {r.attribute} | {r.method} | {r.nfe} | {_with_ends(r, 'success_gain', '+')} | "
        f"{_with_ends(r, 'identity_gain', '+')} |"
        for r in rows
        if r.method in (DDIM, STOCK)
    ]
    return "\n".join(lines)


def _roles(results: Sequence[AttributeResult]) -> list[str]:
    return list(dict.fromkeys(s.role for r in results for s in r.steps if s.role != SWEEP))


def _steps(results: Sequence[AttributeResult]) -> str:
    return _by_role(results, lambda s: f"{s.balance:.2f}", lambda s: -s.balance)


def _distances(results: Sequence[AttributeResult]) -> str:
    return _by_role(results, lambda s: f"{s.frechet:.0f}", lambda s: s.frechet)


def _by_role(
    results: Sequence[AttributeResult], told: Callable[[StepRow], str], worth: Callable[[StepRow], float]
) -> str:
    """A row an attribute; the best of the sweep is the one whose `worth` is least."""
    roles = _roles(results)
    lines = ["| attribute | best of the sweep | " + " | ".join(roles) + " |", "|---" * (len(roles) + 2) + "|"]
    for result in results:
        best = min((s for s in result.steps if s.role == SWEEP), key=worth)
        by_role = {s.role: s for s in result.steps if s.role != SWEEP}
        cells = [f"{told(best)} ({best.time:.0f})"]
        for role in roles:
            step = by_role.get(role)
            text = "" if step is None else told(step)
            cells.append(f"{text} ({step.time:.0f})" if step is not None and role in CHOOSING else text)
        lines.append(f"| {best.attribute} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gaps(results: Sequence[AttributeResult]) -> str:
    roles = [role for role in _roles(results) if role != NONE]
    lines = ["| attribute | " + " | ".join(roles) + " |", "|---" * (len(roles) + 1) + "|"]
    for result in results:
        by_role = {s.role: s for s in result.steps}
        cells = ["" if role not in by_role else _with_ends(by_role[role], "below_best") for role in roles]
        lines.append(f"| {result.steps[0].attribute} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
