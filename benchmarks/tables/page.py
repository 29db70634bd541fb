"""docs/results.md and the table of README.md, from the files of docs/results.

`python -m benchmarks.tables.page` writes both, `--check` only says whether they are what the files say. A table is
one entry of page.toml and no code. The keys of an entry:

title, text     its heading and its introduction
file            a .csv or .jsonl of docs/results; the lines of the latter are flattened (`conditions` into the row)
rows            columns that name a row of the table, in the order of the file
columns         the column whose values become columns of the table, if any
values          what a cell shows: `of` (a column), `low` and `high` (its interval), `format`, `name` (a heading),
                `best` (`low` or `high`: the best of each column in bold, among rows of as many images as any)
where, omit     column -> values: only these rows of the file, or all but these
names           what rows, columns and headings are called on the page
pictures, more  other files of docs/results to show, and to link to
"""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.files import write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE, README = ROOT / "docs" / "results", ROOT / "docs" / "results.md", ROOT / "README.md"
ENTRIES = Path(__file__).with_suffix(".toml")
PROVENANCE = ("date", "seeds", "images", "machine", "interval")
BEGIN, END = "<!-- front:begin -->", "<!-- front:end -->"

Row = Mapping[str, Any]


def read(file: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a file of docs/results, and how they were made (the command left out)."""
    lines = (RESULTS / file).read_text().splitlines()
    if file.endswith(".jsonl"):
        rows: list[Row] = [data | data.pop("conditions") for data in map(json.loads, lines)]
        machines = [f"{r['cpus']} cores, {r['machine']}, Python {r['python']}" for r in rows]
        return rows, {"date": _each(r["date"] for r in rows), "machine": _each(machines)}
    notes = dict(line[1:].strip().split(": ", 1) for line in lines if line.startswith("#"))
    notes.pop("command", None)
    return list(csv.DictReader(line for line in lines if not line.startswith("#"))), notes


def table(entry: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The lines of one table."""
    rows = _chosen(entry, rows)
    names, keys, across, values = entry.get("names", {}), entry["rows"], entry.get("columns"), entry["values"]
    columns = _in_order({_key(row[across]) for row in rows} if across else {""}, rows, across)
    most = max((int(row["images"]) for row in rows if row.get("images")), default=0)
    found = {(tuple(_key(row[k]) for k in keys), _key(row[across]) if across else ""): row for row in rows}
    spots = [(column, value) for column in columns for value in values]
    heads = [names.get(k, k) for k in keys] + [_heading(c, v, across, names, len(values)) for c, v in spots]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    starred = bool(across) and "images" not in keys
    best = [_best(found.values(), column, value, across, most, value.get("best")) for column, value in spots]
    filled = Counter(column for _, column in found)
    for key in dict.fromkeys(key for key, _ in found):
        texts = [names.get(part, part) for part in key]
        for i, (column, value) in enumerate(spots):
            row = found.get((key, column))
            text = "" if row is None else _cell(row, value)
            star = "*" if text and starred and 0 < _images(row) < most else ""
            texts.append(f"**{text}**" if text and row is best[i] and filled[column] > 1 else text + star)
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def section(entry: Mapping[str, Any]) -> str:
    """A heading, the introduction, the table, the pictures, and where the figures are from."""
    rows, notes = read(entry["file"])
    parts = [f"### {entry['title']}", entry["text"].strip()]
    if "values" in entry:
        parts.append("\n".join(table(entry, rows)))
        images = sorted({_images(row) for row in _chosen(entry, rows)} - {0})
        if images:
            starred = images[1:] and entry.get("columns") and "images" not in entry["rows"]
            each = " and ".join(f"{n:,}" for n in images)
            notes |= {"images": f"{images[-1]:,} (with a star: {images[0]:,})" if starred else each}
    parts += [f"![{entry['title']}](results/{picture})" for picture in entry.get("pictures", ())]
    files = ", ".join(f"[{file}](results/{file})" for file in (entry["file"], *entry.get("more", ())))
    made = "; ".join(f"{name}: {notes[name]}" for name in PROVENANCE if name in notes)
    others = [f"- {name}: {text}" for name, text in notes.items() if name not in PROVENANCE]
    return "\n\n".join([*parts, f"{files}. {made}".strip(), *(["\n".join(others)] if others else [])])


def page() -> str:
    """docs/results.md."""
    entries = tomllib.loads(ENTRIES.read_text())
    parts = [entries["head"].strip()]
    for chapter in entries["chapter"]:
        parts += [f"## {chapter['title']}", *(section(entry) for entry in chapter["section"])]
    return "\n\n".join(parts) + "\n"


def readme() -> str:
    """README.md with its table of three rows: in each column the lowest value of a set of rows."""
    lines: list[str] = []
    for entry in tomllib.loads(ENTRIES.read_text())["readme"]:
        rows = _chosen(entry, read(entry["file"])[0])
        columns = _in_order({_key(row["nfe"]) for row in rows}, rows, "nfe")
        most, value = max(map(_images, rows)), {"of": "value", "low": "low", "high": "high", "format": ".2f"}
        if not lines:
            lines = ["| NFE | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        chosen = [_best(rows, column, value, "nfe", most, "low") for column in columns]
        lines.append(f"| {entry['title']} | " + " | ".join(_cell(row, value) for row in chosen if row) + " |")
    text = README.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    return "\n".join([f"{head}{BEGIN}", *lines, f"{END}{tail}"])


def _chosen(entry: Mapping[str, Any], rows: Iterable[Row]) -> list[Row]:
    where, omit = entry.get("where", {}), entry.get("omit", {})
    kept = [row for row in rows if all(str(row[name]) in values for name, values in where.items())]
    return [row for row in kept if not any(str(row[name]) in values for name, values in omit.items())]


def _key(value: Any) -> str:
    try:
        return f"{round(float(value), 2):.15g}"
    except ValueError:
        return str(value)


def _in_order(keys: set[str], rows: Sequence[Row], across: str | None) -> list[str]:
    """Numbers by size, names as they come."""
    try:
        return sorted(keys, key=float)
    except ValueError:
        return list(dict.fromkeys(_key(row[across]) for row in rows)) if across else [""]


def _heading(column: str, value: Mapping[str, str], across: str | None, names: Mapping[str, str], several: int) -> str:
    name = value.get("name", value["of"])
    if not across:
        return name
    column = names.get(column, f"NFE {column}" if across == "nfe" else column)
    return f"{column}: {name}" if several > 1 else column


def _images(row: Row | None) -> int:
    return int(row["images"]) if row and row.get("images") else 0


def _best(
    rows: Iterable[Row], column: str, value: Mapping[str, str], across: str | None, most: int, best: str | None
) -> Row | None:
    """The row whose value is the lowest or highest of the column, of those judged on `most` images."""
    there = [r for r in rows if (not across or _key(r[across]) == column) and r[value["of"]] != ""]
    there = [r for r in there if _images(r) in (0, most)]
    if best is None or not there:
        return None
    return (max if best == "high" else min)(there, key=lambda r: float(r[value["of"]]))


def _cell(row: Row, value: Mapping[str, str]) -> str:
    shape = value.get("format", "")
    text = _number(row[value["of"]], shape)
    low, high = (row.get(value[end], "") if end in value else "" for end in ("low", "high"))
    return text if "" in (low, high, text) else f"{text} ({_number(low, shape)} to {_number(high, shape)})"


def _number(value: Any, shape: str) -> str:
    if isinstance(value, list):
        return ", ".join(_number(part, shape) for part in value)
    if not shape or value in ("", None):
        return "" if value is None else str(value)
    return format(float(value), shape)


def _each(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts)))


def main(arguments: Sequence[str]) -> int:
    """Write both files, or with --check compare them."""
    made = {PAGE: page(), README: readme()}
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    if "--check" in arguments:
        for path in changed:
            print(f"{path.relative_to(ROOT)} is not what docs/results says: run python -m benchmarks.tables.page")
        return int(bool(changed))
    for path in changed:
        write_text(path, made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
